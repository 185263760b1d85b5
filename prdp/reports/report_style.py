"""The look of the report: one style sheet, light and dark, without a file to fetch."""

from prdp.reports.charts import CHART_STYLE, CURVE_COLOURS

STYLE = (
    CURVE_COLOURS
    + """
:root{color-scheme:light dark;--paper:#fff;--page:#f5f6f8;--ink:#1c2430;--muted:#5d6878;--line:#e3e7ec;
--up:#1f7a53;--down:#b3402f;--up-soft:#e4f3ec;--down-soft:#fbe9e5;
--soft:#eef1f5}
@media (prefers-color-scheme:dark){:root{--paper:#171d26;--page:#0f141b;--ink:#e6eaf0;--muted:#9aa5b5;--line:#2b3442;
--up:#6fcf9f;--down:#f0907d;--up-soft:#163327;--down-soft:#3d211c;
--soft:#202835}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1240px;margin:0 auto;padding:40px 24px 56px}
h1{font-size:26px;line-height:1.25;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:44px 0 4px;letter-spacing:-.005em}
h3{font-size:13px;margin:0;font-weight:600}
p{margin:0}
.lead{color:var(--muted);max-width:100ch;margin-bottom:16px}
.muted{color:var(--muted)}
.num{font-variant-numeric:tabular-nums;white-space:nowrap}
header .line{display:flex;flex-wrap:wrap;align-items:center;gap:6px 14px;margin-top:8px;color:var(--muted)}
.badge{border-radius:99px;padding:2px 11px;font-size:13px;font-weight:600;background:var(--soft);color:var(--ink)}
.badge.finished{background:var(--up-soft);color:var(--up)}
.badge.failed,.badge.interrupted{background:var(--down-soft);color:var(--down)}
.panel{background:var(--paper);border:1px solid var(--line);border-radius:12px}
.headline{margin-top:26px;padding:26px 28px;display:flex;flex-wrap:wrap;gap:24px 48px;align-items:center}
.headline>div{flex:1 1 440px;min-width:0}.curvebox{flex:1 1 420px;min-width:0;margin:0}
.curvebox figcaption{font-size:13px;color:var(--muted);padding-left:8px}
.headline .label{font-size:13px;color:var(--muted);margin-bottom:2px}
.headline .big{font-size:38px;line-height:1.15;font-weight:650;letter-spacing:-.02em}
.headline .ci{font-size:13px;color:var(--muted)}
.headline .arrow{font-size:26px;color:var(--muted);align-self:center}
.headline .note{color:var(--muted);font-size:14px;max-width:72ch;margin-top:18px}
.pair{display:flex;gap:16px 28px;align-items:flex-end;flex-wrap:wrap}
.up{color:var(--up)}.down{color:var(--down)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px 24px;
margin:22px 0 0;padding:0 4px}
.facts dt{font-size:12.5px;color:var(--muted)}.facts dd{margin:0;font-weight:550;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:16px}
.cards.large{grid-template-columns:repeat(auto-fill,minmax(420px,1fr))}
.card{padding:14px;display:flex;flex-direction:column;gap:10px;margin:0}
.card figcaption{font-size:14px;line-height:1.4;overflow-wrap:anywhere}
.shots{display:grid;grid-template-columns:1fr 1fr;gap:8px 8px;margin-top:auto}
.shots .head{font-size:12px;color:var(--muted)}
.shot{display:block;min-width:0}
.shot span{display:flex;justify-content:space-between;gap:6px;font-size:13px;margin-top:3px}
img{display:block;width:100%;height:auto;border-radius:6px;background:var(--soft);box-shadow:0 0 0 1px var(--line)}
.missing{aspect-ratio:1;display:grid;place-items:center;border-radius:6px;background:var(--soft);color:var(--muted);
font-size:12px;text-align:center;padding:4px}
img.pixels{image-rendering:pixelated}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.strip{padding:16px 18px}
.strip table{width:auto}.strip td,.strip th{border:0;padding:4px 6px;text-align:center;font-size:13px}
.strip img{width:96px}.strip th:first-child,.strip td:first-child{text-align:left;min-width:170px;max-width:230px;
white-space:normal;padding-left:0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:16px}
.chartbox{padding:14px 14px 8px;margin:0;display:flex;flex-direction:column}
.chartbox .chart{margin-top:auto;padding-top:6px}.aside{font-size:13px;color:var(--muted)}
.chartbox figcaption{font-size:13px;color:var(--muted);line-height:1.4;margin-top:2px}
.chartbox .top{display:flex;justify-content:space-between;gap:10px;align-items:baseline}
.chart{display:block;width:100%;height:auto;margin-top:6px}
table{border-collapse:collapse;width:100%}
th{font-size:12.5px;font-weight:600;color:var(--muted);text-align:right;vertical-align:bottom}
th,td{padding:8px 14px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left}
tr.total td{font-weight:600}
tr.section td{font-size:12.5px;color:var(--muted);font-weight:600;padding-top:16px;border-bottom:1px solid var(--line)}
td .ci{color:var(--muted);font-size:13px;font-weight:400}
.change{display:inline-block;border-radius:6px;padding:1px 8px;font-weight:600}
.change.up{background:var(--up-soft)}.change.down{background:var(--down-soft)}
.bar{display:inline-block;height:8px;border-radius:4px;background:var(--s0);vertical-align:middle;min-width:1px}
.track{display:inline-block;width:140px;text-align:left}
.dumbbell{display:block;width:160px;height:14px;margin-left:auto}
.dumbbell line{stroke-width:3;stroke-linecap:round}.dumbbell .axis{stroke:var(--line);stroke-width:2}
.dumbbell .up{stroke:var(--up)}.dumbbell .down{stroke:var(--down)}.dumbbell .flat{stroke:var(--muted)}
.dumbbell .from{fill:var(--paper);stroke:var(--muted);stroke-width:1.5}
.dumbbell .to.up{fill:var(--up)}.dumbbell .to.down{fill:var(--down)}.dumbbell .to.flat{fill:var(--muted)}
details{padding:14px 18px}details+details{margin-top:12px}
summary{cursor:pointer;font-weight:600}
details .charts{margin-top:14px}
pre{margin:12px 0 0;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-x:auto}
.warnings{margin-top:20px;padding:4px 28px 10px;border-left:4px solid var(--down)}.warnings h2{margin-top:14px}
.empty{padding:18px 20px;color:var(--muted)}
footer{margin-top:48px;font-size:13px;color:var(--muted)}
@media (max-width:640px){main{padding:24px 14px 40px}.headline{padding:20px}.headline .big{font-size:31px}
.charts,.cards,.cards.large{grid-template-columns:minmax(0,1fr)}th,td{padding:7px 9px}.pair{gap:14px}
.facts{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media print{body{background:#fff}.panel{break-inside:avoid}}
"""
    + CHART_STYLE
)
