// Builds ../static/app.js, with a digest of the sources, so that a test sees when it is out of date.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { build } from "esbuild";

const digest = createHash("sha256");
for (const name of readdirSync("src").sort()) digest.update(readFileSync(`src/${name}`));

await build({
  entryPoints: ["src/main.ts"],
  outfile: "../static/app.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  banner: { js: `// Built from pipeline/view/page/src, SHA-256 ${digest.digest("hex")}` },
});
