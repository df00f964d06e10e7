"""The page's style sheet: readable on paper, in light and in dark, without a colour carrying meaning alone."""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1c1e21; --soft: #5b6068; --rule: #d4d7dc; --paper: #ffffff; --panel: #f6f7f9; --mark: #0b5394;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #a1a7b0; --rule: #3d434c; --paper: #16191d; --panel: #1e2227; --mark: #8cc0f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
       font: 16px/1.5 "Source Serif 4", Charter, "Iowan Old Style", Georgia, "DejaVu Serif", serif; }
main { max-width: 74rem; margin: 0 auto; padding: 3rem 2rem 5rem; }
h1, h2, h3, .eyebrow, table, dl, figcaption, nav, .legend, .small {
  font-family: "Inter", "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif; }
.eyebrow { font-size: .75rem; letter-spacing: .09em; text-transform: uppercase; color: var(--soft); margin: 0; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -.02em; margin: .2rem 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; letter-spacing: -.01em; margin: 3.4rem 0 .4rem; padding-top: 1rem;
     border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; }
.lede { font-size: 1.15rem; }
.soft, .small { color: var(--soft); }
.small { font-size: .8rem; line-height: 1.45; }
a { color: var(--mark); }
nav { font-size: .85rem; margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: .3rem 1.2rem; font-size: .86rem; margin: 1.4rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
dd ul { margin: 0; padding: 0; list-style: none; }
dd li { margin: 0 0 .25rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .9em; }
.notice { border: 1px solid var(--rule); border-left: .35rem solid var(--ink); background: var(--panel);
          padding: .8rem 1.2rem; margin: 1.6rem 0; border-radius: 2px; }
.notice h3 { margin: 0 0 .3rem; }
.notice ul { margin: 0; padding-left: 1.2rem; font-size: .92rem; }
.wide { overflow-x: auto; }
table.scores { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums;
               margin: .4rem 0 .6rem; }
.scores th, .scores td { padding: .34rem .3rem .34rem .7rem; text-align: right; white-space: nowrap;
                         vertical-align: top; }
.scores th:first-child, .scores td:first-child { text-align: left; padding-left: 0; }
.scores .text { text-align: left; white-space: normal; max-width: 26rem; }
.scores thead th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
.scores thead tr.over th { border-bottom: 0; padding-bottom: 0; }
.scores thead tr.over th[colspan] span { display: block; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
.scores tbody th { font-weight: 500; }
.scores tbody tr.block th { font-weight: 600; padding-top: 1rem; border-bottom: 1px solid var(--rule);
                            text-align: left; }
.scores tbody tr.baseline { color: var(--soft); }
.scores tbody tr:last-child > * { border-bottom: 1px solid var(--rule); }
.scores .gap { padding-left: 1.6rem; }
.scores td b { color: var(--ink); }
.scores td.sd { text-align: left; color: var(--soft); padding-left: .3rem; min-width: 4.6em; }
.scores td.sd span { font-size: .8em; color: var(--ink); }
.scores thead th[colspan] { text-align: center; }
figure { margin: 1rem 0 2.2rem; }
.chart { background: #fff; border: 1px solid var(--rule); border-radius: 3px; padding: .8rem; }
.chart img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .82rem; color: var(--soft); margin: .5rem 0 0; max-width: 56rem; }
.sequence { break-inside: avoid; }
.sequence figcaption { color: var(--ink); margin: 0 0 .3rem; }
table.frames { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 46rem; font-size: .76rem; }
.frames th { font-weight: 400; color: var(--soft); padding: .15rem .2rem; line-height: 1.3; overflow-wrap: anywhere; }
.frames th.who { text-align: left; width: 11rem; padding: 0 .8rem 0 0; color: var(--ink); font-weight: 600;
                 vertical-align: middle; }
.frames th.who span { display: block; font-weight: 400; color: var(--soft); }
.frames td { padding: 1.5px; }
.frames td img { display: block; width: 100%; height: auto; image-rendering: pixelated;
                 outline: 1px solid var(--rule); }
.frames tr.later th { padding-top: .7rem; }
.moving { font-size: .82rem; margin: .5rem 0 0; }
.moving summary { cursor: pointer; color: var(--mark); }
.moving img { display: block; max-width: 100%; margin: .4rem 0 0; }
.legend text { font-size: 11px; fill: var(--ink); }
.legend { max-width: 100%; }
footer { margin-top: 4rem; border-top: 1px solid var(--rule); padding-top: .8rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --paper: #fff; --panel: #fff; --mark: #000; }
  main { max-width: none; padding: 0; }
  nav, .moving { display: none; }
  body { font-size: 10.5pt; }
  h2, h3, p { break-after: avoid; }
  .wide, .chart { break-inside: avoid; }
  .chart, .frames td img, .legend { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; }
  table.scores, table.frames { min-width: 0; }
  .scores th, .scores td { padding: .25rem .45rem; }
}
"""
