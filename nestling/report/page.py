"""The frames of the reports: their style, their layout, and the script that sorts their table.

`$name` marks what `html.py` and `lineup_html.py` fill in. The content policy forbids every request;
both colour schemes keep a contrast of at least 4.5 to 1 for text.
"""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root {
  --ground: #ffffff; --raised: #f4f6f8; --ink: #1b1f24; --quiet: #59616b; --line: #d9dee4;
  --accent: #005f96;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --raised: #1e2329; --ink: #e8ebee; --quiet: #a3acb6; --line: #343b44;
    --accent: #66b8e8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { margin: 0 0 .75rem; color: var(--quiet); font-size: 1rem; font-weight: 600; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: 1rem 0 .35rem; color: var(--quiet); font-size: .85rem; font-weight: 600; }
.result {
  margin: 0; max-width: 32em; font-size: clamp(1.4rem, 4.2vw, 2.1rem); font-weight: 650;
  line-height: 1.22; letter-spacing: -.01em; text-wrap: balance;
}
.key, .hint { margin: .6rem 0 0; color: var(--quiet); }
.hint { margin: 0 0 .5rem; font-size: .85rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; overflow-wrap: normal; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--raised); font-weight: 600; vertical-align: bottom; line-height: 1.25;
  overflow-wrap: normal; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; }
.scroll th:first-child { position: sticky; left: 0; background: var(--ground); }
.scroll thead th:first-child { background: var(--raised); }
.long { min-width: 13rem; }
@media (max-width: 40rem) { .long { min-width: 8rem; } }
.out > * { color: var(--quiet); font-weight: 400; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .scroll:focus-visible, pre:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort] { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1.25rem 0 0; }
.wide { width: min(100vw - 2.5rem, var(--width)); margin-left: 50%; transform: translateX(-50%); }
figcaption { margin-bottom: .5rem; font-weight: 600; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: .5rem; background: #fff; }
pre { overflow-x: auto; margin: 0; padding: .8rem 1rem; border-radius: .5rem;
  background: var(--raised); font: .875rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; overflow-wrap: normal; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  column-gap: 2.5rem; }
dl { margin: 0; }
dl div { display: flex; gap: 1rem; padding: .35rem 0; border-bottom: 1px solid var(--line); }
dt { flex: 0 0 7rem; color: var(--quiet); }
dd { flex: 1; margin: 0; min-width: 0; }
.warn { margin-top: 1.25rem; padding: .7rem 1rem .8rem; border-left: 4px solid #d55e00;
  border-radius: .25rem; background: var(--raised); }
.warn p { margin: 0; font-weight: 600; }
.warn ul { color: var(--ink); }
ul { margin: .3rem 0 0; padding-left: 1.25rem; color: var(--quiet); }
summary { margin-top: 1.25rem; cursor: pointer; color: var(--accent); }
details .scroll { margin-top: .75rem; }
details th { overflow-wrap: normal; }
@media (max-width: 40rem) { details .scroll th:first-child { position: static; } }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
</style>
</head>
<body>
"""

_MENU = """<header>
<h1>$title</h1>
<p class="result">$head_line</p>
<p class="key">$key_figures</p>
</header>
<main>
<section>
<h2 id="menu">The menu</h2>
<p class="hint">Speed-ups are over the full net. Measured: its median latency divided by
the subnet's; ideal: what it would be if time fell in proportion to MACs.
A click on a heading sorts.</p>
<div class="scroll" role="region" aria-labelledby="menu" tabindex="0">
<table id="rows">
$table
</table>
</div>
$reasons
$narrowed
</section>
<section>
<h2>Pictures</h2>
$pictures
<details>
<summary id="widths">Units kept on each axis, as numbers</summary>
<div class="scroll" role="region" aria-labelledby="widths" tabindex="0">
<table>
$widths
</table>
</div>
</details>
</section>
<section>
<h2>How to use it</h2>
$use
</section>
<div class="pair">
$facts
$machine
</div>
</main>
"""

_COMPARISON = """<header>
<h1>$title</h1>
<p class="result">$head_line</p>
<p class="key">$key_figures</p>
$warnings
</header>
<main>
<section>
<h2>Accuracy against cost</h2>
$picture
</section>
<section>
<h2 id="budgets">At the same budgets</h2>
<p class="hint">$rule A click on a heading sorts.</p>
<div class="scroll" role="region" aria-labelledby="budgets" tabindex="0">
<table id="rows">
$budgets
</table>
</div>
<details>
<summary id="entries">Every point of the curves</summary>
<div class="scroll" role="region" aria-labelledby="entries" tabindex="0">
<table>
$points
</table>
</div>
</details>
<details>
<summary id="subnets">Every subnet of every run</summary>
<div class="scroll" role="region" aria-labelledby="subnets" tabindex="0">
<table>
$subnets
</table>
</div>
</details>
</section>
<section>
<h2>What the subnets look like</h2>
$skylines
</section>
$searches
<div class="pair">
$facts
$machine
</div>
</main>
"""

_SORTING = """<script>
const table = document.getElementById("rows"), heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
  const sign = head.ariaSort === "ascending" ? -1 : 1, body = table.tBodies[0];
  const value = row => row.cells[column].dataset.v;
  const order = (a, b) => column ? a - b : a.localeCompare(b, undefined, {numeric: true});
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return x === "" || y === "" ? (x === "") - (y === "") : sign * order(x, y);
  });
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...rows);
}));
</script>
</body>
</html>
"""

FRAME = _HEAD + _MENU + _SORTING
COMPARISON = _HEAD + _COMPARISON + _SORTING
