// Draws the maps of a report: one for each element with data-map, from the JSON in the element of that id.
"use strict";
for (const place of document.querySelectorAll("[data-map]")) {
  const data = JSON.parse(document.getElementById(place.dataset.map).textContent);
  const many = data.layers.reduce((count, layer) => count + layer.shapes.length, 0) > 2000; // a canvas is faster then
  const map = L.map(place, { attributionControl: false, zoomSnap: 0.25, maxZoom: 24, preferCanvas: many });
  const bounds = L.latLngBounds([]);
  const overlays = {};

  // Text of users' files goes into the page as text alone.
  const cell = (row, tag, text) => { row.appendChild(document.createElement(tag)).textContent = text; };
  const table = shape => {
    const box = document.createElement("div");
    box.appendChild(document.createElement("b")).textContent = shape.title;
    if (shape.note) box.appendChild(document.createElement("p")).textContent = shape.note;
    if (shape.rows.length) {
      const rows = box.appendChild(document.createElement("table"));
      const head = rows.appendChild(document.createElement("tr"));
      shape.columns.forEach(text => cell(head, "th", text));
      for (const values of shape.rows) {
        const line = rows.appendChild(document.createElement("tr"));
        values.forEach(text => cell(line, "td", text));
      }
    }
    return box;
  };

  for (const layer of data.layers) {
    const group = L.layerGroup();
    for (const image of layer.images) {
      L.imageOverlay(image.uri, image.bounds, { alt: image.title, className: "pixels" }).addTo(group);
      bounds.extend(image.bounds);
    }
    for (const shape of layer.shapes) {
      const style = { color: shape.line, weight: layer.outline ? 1.5 : 1, fillColor: shape.fill, fillOpacity: layer.outline ? 0 : 0.6 };
      const drawn = L.geoJSON(shape.geometry, { style, interactive: !layer.outline });
      if (!layer.outline) {
        drawn.bindPopup(() => table(shape), { maxWidth: 420, maxHeight: 320 });
        drawn.on("add", () => drawn.eachLayer(part => {
          const path = part.getElement();
          if (!path || layer.shapes.length > 500) return; // a canvas has no elements; nobody tabs through so many
          path.setAttribute("tabindex", "0");
          path.setAttribute("role", "button");
          path.setAttribute("aria-label", shape.title);
          path.addEventListener("keydown", event => { if (event.key === "Enter") drawn.openPopup(part.getBounds().getCenter()); });
        }));
      }
      drawn.addTo(group);
      bounds.extend(drawn.getBounds());
    }
    if (layer.shown) group.addTo(map);
    const name = document.createElement("span");
    name.textContent = layer.name;
    overlays[name.innerHTML] = group;
  }
  map.fitBounds(bounds, { padding: [12, 12] });
  // On a narrow page the top belongs to tables of zones.
  L.control.layers(null, overlays, { collapsed: false, position: place.clientWidth < 640 ? "bottomright" : "topright" }).addTo(map);
  L.control.scale({ imperial: false }).addTo(map);
}
