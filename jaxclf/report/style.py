"""The style sheet of report.html."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 14px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1d2733; background: #f3f5f8; margin: 0 auto; max-width: 1240px; padding: 24px; }
header, section { background: #fff; border: 1px solid #dfe4ea; border-radius: 10px;
  padding: 22px 28px; margin-bottom: 18px; overflow-wrap: anywhere; }
h1 { font-size: 24px; margin: 0; } header p { color: #5c6b7c; margin: 4px 0 18px; }
h2 { font-size: 18px; margin: 0 0 12px; } h3 { font-size: 14px; margin: 22px 0 8px; }
section > h3:first-of-type, .grid h3 { margin-top: 4px; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 4px 18px; }
a { color: #2f6db5; text-decoration: none; } a:hover { text-decoration: underline; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; }
.card { background: #eef4fb; border-radius: 8px; padding: 12px 20px; min-width: 170px; }
.card b { display: block; font-size: 26px; font-weight: 600; color: #1f5594; }
.card span { color: #5c6b7c; }
.grid { display: grid; gap: 8px 36px; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr));
  align-items: start; }
.columns { columns: 330px; column-gap: 36px; }
.columns > div { break-inside: avoid; margin-bottom: 20px; } .columns h3 { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: #5c6b7c; border-bottom: 2px solid #dfe4ea; }
td, th { padding: 4px 14px 4px 0; vertical-align: top; }
td { border-bottom: 1px solid #edf0f4; } tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.facts { max-width: 640px; } .facts td:first-child { color: #5c6b7c; width: 58%; }
.facts td:last-child { text-align: right; padding-right: 0; }
.texts { table-layout: fixed; } .texts p { margin: 0 0 3px; }
.texts td:nth-child(-n+2), .texts th:nth-child(-n+2) { width: 18%; }
.texts td:nth-child(3), .texts th:nth-child(3) { width: 84px; text-align: right; }
.outputs { table-layout: fixed; } .outputs td:first-child, .outputs th:first-child { width: 90px; }
.classes th:not(:first-child) { text-align: right; }
.bar { position: relative; width: 30%; text-align: right; }
.bar i { position: absolute; left: 14px; top: 6px; bottom: 6px; background: #cfe0f3;
  border-radius: 2px; }
small { color: #8794a3; } code { font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; background: #f3f5f8; padding: 1px 4px; border-radius: 3px; }
mark { background: #ffe08a; padding: 0 2px; border-radius: 2px; }
.note { color: #5c6b7c; font-size: 13px; margin: 8px 0; }
img { width: 100%; } .wide { overflow-x: auto; overflow-wrap: normal; }
.heat { font-family: inherit; } .heat .ground { fill: #f8f9fb; stroke: #c8d0da; }
.heat .axis { fill: #5c6b7c; font-weight: 600; font-size: 12px; }
.heat path { fill: none; } .heat .rule { stroke: #eef1f5; } .heat .rule5 { stroke: #d5dbe3; }
@media print { body { background: #fff; } section { break-inside: auto; } nav { display: none; } }
"""
