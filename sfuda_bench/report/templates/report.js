"use strict";
(() => {
  const cells = JSON.parse(document.getElementById("cells").textContent);

  // -- tables: sort and filter --------------------------------------------------------------

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };

  const compare = (a, b) =>
    typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;

  function sortRows(section, column, descending) {
    const body = section.querySelector("tbody");
    const rows = [...body.rows].sort((a, b) => a.dataset.order - b.dataset.order);
    if (column !== null) {
      const keyed = rows.map((row) => [valueOf(row, column), row]);
      // What is missing stays last, whichever way the rest is sorted.
      keyed.sort(([a], [b]) =>
        a === null || b === null ? (a === null) - (b === null) : (descending ? -1 : 1) * compare(a, b)
      );
      rows.splice(0, rows.length, ...keyed.map(([, row]) => row));
    }
    body.append(...rows);
    body.classList.toggle("sorted", column !== null);
    for (const button of section.querySelectorAll("[data-sort]")) {
      const active = column !== null && Number(button.dataset.sort) === column;
      const way = descending ? "descending" : "ascending";
      button.parentElement.setAttribute("aria-sort", active ? way : "none");
    }
    section.querySelector("[data-sort-by]").value = column === null ? "" : String(column);
  }

  function filterRows(section) {
    const words = section.querySelector("[data-filter]").value.toLowerCase().split(/\s+/);
    const pair = section.querySelector("select[data-pair]").value;
    const oracle = section.querySelector("input[data-oracle]").checked;
    const rows = [...section.querySelector("tbody").rows];
    for (const row of rows) {
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase();
      row.hidden =
        !words.every((word) => text.includes(word)) ||
        (pair !== "" && row.dataset.pair !== pair) ||
        (!oracle && "oracle" in row.dataset);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    section.querySelector("[data-count]").textContent = `${shown} of ${rows.length} rows`;
  }

  for (const section of document.querySelectorAll("[data-table]")) {
    [...section.querySelector("tbody").rows].forEach((row, index) => { row.dataset.order = index; });
    const best = (column) => {
      const button = section.querySelector(`[data-sort="${column}"]`);
      return button.dataset.descending === "1";
    };
    for (const button of section.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => {
        // First the best on top, then the other way, then the table's own order.
        const column = Number(button.dataset.sort);
        const now = button.parentElement.getAttribute("aria-sort");
        const first = best(column) ? "descending" : "ascending";
        if (now === "none") sortRows(section, column, best(column));
        else if (now === first) sortRows(section, column, !best(column));
        else sortRows(section, null, false);
      });
    }
    const choice = section.querySelector("[data-sort-by]");
    choice.addEventListener("change", () => {
      const column = choice.value === "" ? null : Number(choice.value);
      sortRows(section, column, column !== null && best(column));
    });
    section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    for (const event of ["input", "change"]) {
      section.querySelector("form").addEventListener(event, () => filterRows(section));
    }
    filterRows(section); // a browser may have kept what was typed before a reload
  }

  // -- cells: stored text is only ever set as text, never as markup --------------------------

  const dialog = document.getElementById("details");
  const element = (name, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const textOf = (value) =>
    value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);

  function cellPanel(cell, open) {
    const panel = element("details");
    panel.open = open;
    panel.append(element("summary", `${cell.name}: ${cell.state}`));
    for (const [title, values] of Object.entries(cell.sections)) {
      const list = element("dl");
      for (const [name, value] of Object.entries(values)) {
        list.append(element("dt", name), element("dd", textOf(value)));
      }
      panel.append(element("h3", title), list);
    }
    if (cell.log) panel.append(element("h3", "Log"), element("pre", cell.log));
    return panel;
  }

  const keysOf = (holder) => holder.dataset.keys.split(" ").filter((key) => key in cells);

  function openCells(keys) {
    const shown = keys.map((key) => cells[key]);
    document.getElementById("details-title").textContent =
      shown.length === 1 ? "1 cell" : `${shown.length} cells`;
    const panels = shown.map((cell) => cellPanel(cell, shown.length === 1));
    document.getElementById("details-body").replaceChildren(...panels);
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-open]");
    if (button) openCells(keysOf(button.closest("[data-keys]")));
    else if (event.target === dialog) dialog.close();
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());
})();
