"""Keys as an attacker would choose them, and a run that has rows of all of them."""

from pathlib import Path

import pyarrow as pa

from pipeline.config import SegmentConfig
from pipeline.run import folder
from pipeline.source.plan import plan_source
from pipeline.store import objects
from pipeline.store.url import Url
from tests.support.photo_runs import mask_row, photo, write_run

ON_DISK = {
    "tag with an event": "<img src=x onerror=alert(1)>.jpg",
    "script": "<script>window.owned=1<\\u002fscript>.jpg",
    "end of an attribute": '"><svg onload=window.owned=1>.jpg',
    "end of an attribute in single quotes": "' autofocus onfocus='window.owned=1.jpg",
    "end of a script": "a<!--<scri\\u0070t>.jpg",
    "entity": "&lt;b&gt;&amp;&#x3c;script&#x3e;.jpg",
    "scheme of a script": "javascript:window.owned=1.jpg",
    "scheme of data": "data:text;base64,PHNjcmlwdD4=.jpg",
    "template": "{{7*7}}${7*7}#{7*7}.jpg",
    "template of Jinja": "{% include 'secret' %}.jpg",
    "end of an SQL text": "'; DROP TABLE rows; --.jpg",
    "end of an SQL name": '"; DROP TABLE rows; --.jpg',
    "function of DuckDB": "' OR read_text('passwd') OR '.jpg",
    "wildcards of LIKE": "100%_of_\\_.jpg",
    "parameter of a statement": "?1 $1 :key @key.jpg",
    "percent-encoded path": "a%2f..%2f..%2fetc%2fpasswd.jpg",
    "percent-encoded twice": "%252e%252e%252fpasswd.jpg",
    "percent without digits": "100%.jpg",
    "end of a query": "a&limit=0#key=b?token=x.jpg",
    "plus and space": "a+b c%20d.jpg",
    "end of a header": "a\r\nSet-Cookie: x=1.jpg",
    "line feed and tab": "a\nb\tc.jpg",
    "escape of a terminal": "\x1b]0;owned\x07\x1b[31m.jpg",
    "delete and next line": "a\x7fb\x85c.jpg",
    "right to left": "\u202egpj.exe.jpg",
    "isolate": "\u2066\u2067a\u2069.jpg",
    "zero width": "a\u200b\u200d\ufeffb.jpg",
    "line separator of scripts": "a\u2028b\u2029c.jpg",
    "combining characters": "e" + "\u0301" * 60 + ".jpg",
    "emoji of several characters": "\U0001f469\u200d\U0001f469\u200d\U0001f467.jpg",
    "no characters": "\ufffe\uffff\U0010ffff.jpg",
    "replacement of what was no text": "\ufffd\\ud800.jpg",
    "composed": "caf\u00e9.jpg",
    "decomposed": "cafe\u0301.jpg",
    "dotted capital I": "\u0130\u0131.jpg",
    "device of Windows": "CON.jpg",
    "stream of Windows": "a.jpg::$DATA.jpg",
    "path of Windows": "a\\\\..\\..\\windows\\system.jpg",
    "short name of Windows": "PROGRA~1.jpg",
    "glob": "[a-z]*?.jpg",
    "home of a user": "~root.jpg",
    "option of a program": "--output=x.jpg",
    "formula of a spreadsheet": '=cmd|"calc"!A1.jpg',
    "shell": "$(touch owned);`id`|x.jpg",
    "spaces at both ends": " a .jpg",
    "name of a column": "id.jpg",
    "number of another row": "0.jpg",
    "property of every object": "__proto__.jpg",
    "member of an archive": "a.tar#b.jpg",
    "copy of another": "a.jpg~2.jpg",
    "longest name": "n" * 251 + ".jpg",
}
"""Names of files, by what is tried with them."""

IN_PARTS = {
    "folder above": "../labels/secret.jpg",
    "folders above": "a/../../../../../../../../etc/passwd",
    "absolute path": "/etc/passwd",
    "file of this machine": "file:///etc/passwd",
    "object of a bucket": "s3://bucket/secret.jpg",
    "page of another host": "https://evil.example/x.jpg",
    "end of a C text": "a.jpg\0.png",
    "device": "/dev/zero",
    "nothing": "",
    "dot": ".",
    "dots": "..",
    "name of a table": "rows",
    "null of JSON": "null",
    "8 KiB": "k" * 8192,
    "8 KiB of emoji": "\U0001f600" * 2048,
    "8 KiB of tags": "<b>" * 2730,
    "home": "~/.ssh/id_rsa",
}
"""Keys that no file has, but a part may."""

HOSTILE_KEYS = ON_DISK | IN_PARTS


def hostile_run(root: Path) -> Url:
    """A source with a photo for each name `ON_DISK`, and a finished run with a row and a mask for every hostile key."""
    (root / "photos").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "labels/secret.jpg").write_bytes(photo(99))
    for number, name in enumerate(ON_DISK.values()):
        (root / "photos" / name).write_bytes(photo(number))
    cfg = SegmentConfig(source=[str(root / "photos")], output=str(root / "out"), checkpoint="farmland")
    plan = plan_source(cfg)
    rows = [
        mask_row(member.key, shard.id, source_etag=member.etag) for shard in plan.shards for member in shard.members()
    ]
    secret = objects.info(Url(str(root / "labels/secret.jpg"))).etag
    rows += [mask_row(key, plan.shards[0].id, source_etag=secret) for key in IN_PARTS.values()]
    url = Url(str(root / "out/run=0123456789ab"))
    objects.put(url / folder.CONFIG, cfg.model_dump_json().encode())  # JSON is YAML
    objects.put(url / folder.PLAN, encoded(plan.to_table()))
    write_run(url, rows)
    return url


def encoded(table: pa.Table) -> bytes:
    """Arrow file of a table, as a run stores its plan."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table)
    return out.getvalue().to_pybytes()
