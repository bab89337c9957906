// The page's own code: charts become interactive, the sample table gets its filters. No eval, no request.
const specs = JSON.parse(document.getElementById("specs").textContent);
for (const [name, spec] of Object.entries(specs)) {
  const place = document.getElementById("chart-" + name);
  const live = document.createElement("div");
  vegaEmbed(live, spec, { ast: true, actions: false, renderer: "svg", tooltip: { theme: "light" } })
    .then(() => { place.replaceChildren(live); place.dataset.live = "yes"; })
    .catch((error) => { console.error("chart " + name, error); });
}
const table = document.getElementById("samples");
if (table) {
  const selects = [...document.querySelectorAll("[data-filter]")];
  const search = document.getElementById("search");
  const rows = [...table.tBodies[0].rows];
  const counted = document.getElementById("counted");
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      const fits = selects.every((s) => !s.value || row.dataset[s.dataset.filter] === s.value)
        && row.textContent.toLowerCase().includes(search.value.toLowerCase());
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    counted.textContent = shown + " of " + rows.length + " shown";
  };
  selects.forEach((s) => s.addEventListener("change", apply));
  search.addEventListener("input", apply);
  const reveal = document.getElementById("reveal");
  const toggle = () => table.classList.toggle("revealed", reveal.checked);
  reveal.addEventListener("change", toggle);
  toggle();
  apply();
}
document.documentElement.dataset.ready = "yes";
