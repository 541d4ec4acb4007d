"use strict";
// Tables that sort, rows that unfold, the theme, and charts drawn by Vega-Lite.
(() => {
  const root = document.documentElement;

  // Rows beyond the first few wait behind a button.
  const fold = (table) => {
    const shown = Number(table.dataset.shown);
    [...table.tBodies[0].rows].forEach((row, place) => { row.hidden = place >= shown; });
  };
  for (const table of document.querySelectorAll("main table")) {
    const rows = table.tBodies[0].rows.length;
    if (rows > Number(table.dataset.shown)) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "all";
      button.textContent = `Show all ${rows.toLocaleString("en")} rows`;
      button.addEventListener("click", () => {
        table.dataset.shown = "Infinity";
        fold(table);
        button.remove();
      });
      table.parentElement.after(button);
      fold(table);
    }
    // A number column begins with its largest, a text column with its first. Empty cells come last.
    for (const button of table.querySelectorAll("th button")) {
      button.addEventListener("click", () => {
        const head = button.parentElement;
        const numeric = button.dataset.sort === "number";
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        const value = (row) => {
          const cell = row.cells[head.cellIndex];
          if (!numeric) return cell.textContent;
          return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
        };
        const order = (a, b) => {
          const [one, other] = [value(a), value(b)];
          if (one === null || other === null) return (one === null) - (other === null);
          const sign = numeric ? one - other : one.localeCompare(other, "en", { numeric: true });
          return down ? -sign : sign;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
        for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        if (table.dataset.shown !== "Infinity") fold(table);
      });
    }
  }

  // The theme: the system's, or the one chosen. Storage may be refused, as from file://.
  const themes = ["system", "light", "dark"];
  const toggle = document.getElementById("theme");
  const choose = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    toggle.textContent = `Theme: ${theme}`;
    toggle.dataset.now = theme;
  };
  let kept = null;
  try { kept = localStorage.getItem("adafilter-theme"); } catch { /* the system's then */ }
  choose(themes.includes(kept) ? kept : "system");
  toggle.addEventListener("click", () => {
    const theme = themes[(themes.indexOf(toggle.dataset.now) + 1) % themes.length];
    choose(theme);
    try { localStorage.setItem("adafilter-theme", theme); } catch { /* for this visit only */ }
  });

  // Paper shows what is folded on the screen.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
    document.querySelectorAll("img").forEach((each) => { each.loading = "eager"; });
  });
  addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

  // Charts, one after the other, so that the page can be read and scrolled meanwhile.
  const options = {
    renderer: "svg",
    actions: false,
    tooltip: { theme: "page", disableDefaultStyle: true },
  };
  const draw = async () => {
    for (const chart of document.querySelectorAll(".chart")) {
      try {
        const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
        await window.vegaEmbed(chart, spec, options);
        chart.style.minHeight = "";
      } catch (error) {
        chart.textContent = `This chart could not be drawn: ${error.message}`;
        console.error(error);
      }
      await new Promise((next) => setTimeout(next));
    }
    root.dataset.ready = "true";
  };
  draw();
})();
