"""Style sheet of the demo's page, for light and dark and for phones."""

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --quiet: #5f5f5f; --line: #ddd;
        --card: #f6f7f9; --good: #1a7f37; --bad: #b3261e; --mark: #fde7c3; --curve: #08519c;
        --link: #08519c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e8e8e8; --quiet: #a0a4aa; --line: #33373d; --card: #1f232a;
          --good: #6cc784; --bad: #ff8a80; --mark: #5c4413; --curve: #7cc0ff; --link: #7cc0ff; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       margin: 0; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .5rem; }
p { margin: 0 0 .6rem; }
a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.5rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
.badge { display: inline-block; padding: 0 .6rem; border-radius: 1rem; border: 2px solid;
         margin-right: .2rem; }
.good, .right { color: var(--good); } .bad { color: var(--bad); }
.cards { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .8rem;
         grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
@media (max-width: 30rem) { .cards { grid-template-columns: 1fr 1fr; gap: .6rem; } }
.cards li { background: var(--card); border: 2px solid transparent; border-radius: .5rem;
            padding: .5rem; }
.cards li.is-right { border-color: var(--good); }
.cards p { margin: .3rem 0 0; line-height: 1.35; } .cards span { white-space: nowrap; }
video { width: 100%; height: auto; aspect-ratio: 1; display: block; border-radius: .3rem;
        background: #777; }
mark { background: var(--mark); color: inherit; border-radius: .2rem; padding: 0 .1rem; }
.wide { overflow-x: auto; margin-bottom: .6rem; border: 1px solid var(--line);
        border-radius: .5rem; }
.wide img { display: block; width: 100%; min-width: 40rem; height: auto; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.plot { display: grid; grid-template: "top plot plot" auto "foot plot plot" auto
        ". first last" auto / auto 1fr 1fr; gap: .2rem .5rem; color: var(--quiet);
        font-size: .9rem; }
.plot svg { grid-area: plot; width: 100%; height: 12rem; border: solid var(--quiet);
            border-width: 0 0 1px 1px; overflow: visible; }
.plot span:nth-of-type(1) { grid-area: top; } .plot span:nth-of-type(2) { grid-area: foot;
            align-self: end; text-align: right; }
.plot span:nth-of-type(3) { grid-area: first; } .plot span:nth-of-type(4) { grid-area: last;
            text-align: right; }
.plot path, .plot polyline { fill: none; vector-effect: non-scaling-stroke; }
.plot path { stroke: var(--line); } .plot polyline { stroke: var(--curve); stroke-width: 1.5; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line);
         overflow-wrap: normal; }
td + td { white-space: nowrap; }
.steps { padding-left: 1.4rem; } .steps li { margin-bottom: .8rem; } .steps p { margin: 0; }
code { font-size: .88em; } summary { cursor: pointer; font-weight: 600; margin-bottom: .5rem; }
"""
