"use strict";
// Everything is readable without this script: it adds sorting and filtering, and opens all that is folded for print.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number.parseFloat(text);
  return Number.isNaN(number) || cell.tagName === "TH" ? text : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : String(a).localeCompare(String(b), "en", { numeric: true });

// On a narrow screen a row is a card, and each of its cells says what it is.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, column) => { cell.dataset.label = heads[column] ?? ""; });
  }
  table.classList.add("cards");
}

for (const table of document.querySelectorAll("table.tool")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      body.append(...[...body.rows].sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column))));
    });
  });
  if (rows.length < 8) continue;
  const box = document.createElement("div");
  box.className = "filter";
  const label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search";
  const told = document.createElement("output");
  told.setAttribute("aria-live", "polite");
  label.append("Filter ", input);
  box.append(label, told);
  table.parentElement.before(box);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    told.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}
// A slider over the points of a curve: which rank costs and loses what.
for (const curve of document.querySelectorAll("details.curve")) {
  const marks = [...curve.querySelectorAll("figure > svg circle")];
  const chosen = Math.max(0, marks.findIndex((mark) => mark.classList.contains("chosen")));
  const label = document.createElement("label");
  const slider = document.createElement("input");
  const told = document.createElement("output");
  Object.assign(slider, { type: "range", min: 0, max: marks.length - 1, value: chosen });
  label.className = "filter";
  label.append("Rank ", slider, told);
  const show = () => {
    marks.forEach((mark, index) => mark.classList.toggle("shown", index === Number(slider.value)));
    told.textContent = marks[slider.value].querySelector("title").textContent;
  };
  slider.addEventListener("input", show);
  show();
  curve.querySelector("figure").before(label);
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
