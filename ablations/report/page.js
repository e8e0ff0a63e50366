"use strict";
// Tables sort by a press on a button in their header; answers are filtered and turned over in pages. Without scripts the
// tables stay as they are.
function sortable(table) {
  const body = table.tBodies[0];
  const number = (text) => {
    const found = text.replaceAll("\u2212", "-").replaceAll(",", "").match(/^(?:> |\[)?([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)/);
    return found ? Number(found[1]) : null;
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
      const known = rows.filter((one) => one.text !== "\u2013" && one.text !== "");
      const numeric = known.every((one) => number(one.text) !== null);
      known.sort((one, other) => sign * (numeric
        ? number(one.text) - number(other.text)
        : one.text.localeCompare(other.text)));
      const unknown = rows.filter((one) => !known.includes(one)); // last, in either order
      body.append(...known.map((one) => one.row), ...unknown.map((one) => one.row));
    });
  });
}

function answers(place) {
  const data = JSON.parse(document.getElementById("answers-data").textContent);
  const [ITEM, ARM, LANGUAGE, PROMPT, GOLD, SAID, KIND, TOLD, POINTS] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const cards = place.querySelector(".cards"), status = place.querySelector("[role=status]");
  const [back, on] = place.querySelectorAll(".pager button");
  const chosen = {};
  let page = 0;
  for (const select of place.querySelectorAll("select")) {
    const names = data[select.name];
    const every = new Option("all", "");
    select.append(every, ...names.map((name, number) => new Option(name, String(number))));
    select.addEventListener("change", () => { page = 0; show(); });
    chosen[select.name] = () => (select.value === "" ? null : Number(select.value));
  }
  const element = (name, text, language) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (language) { made.lang = language; made.dir = "auto"; }
    return made;
  };
  const fits = (row) => {
    const wanted = [[chosen.arms(), row[ARM]], [chosen.languages(), row[LANGUAGE]], [chosen.kinds(), row[KIND]],
      [chosen.tasks(), data.items[row[ITEM]][1]]];
    return wanted.every(([want, have]) => want === null || want === have);
  };
  function card(rows) {
    const [item, code] = [data.items[rows[0][ITEM]], data.codes[rows[0][LANGUAGE]]];
    const made = element("article"), words = element("div");
    if (item[2] !== null) {
      const image = element("img");
      image.src = data.images[item[2]];
      image.alt = `Image of item ${item[0]}; expected answer: ${data.texts[rows[0][GOLD]]}`;
      made.append(image);
    }
    const question = element("p"), gold = element("p");
    question.append("Question: ", element("span", data.texts[rows[0][PROMPT]], code));
    gold.append("Expected: ", element("span", data.texts[rows[0][GOLD]], code));
    const table = element("table"), caption = element("caption", "Answers");
    const head = table.createTHead().insertRow(), body = table.createTBody();
    for (const name of ["arm", "answer", "what became of it", "language of the answer"]) {
      const cell = element("th", name);
      cell.scope = "col";
      head.append(cell);
    }
    for (const row of rows) {
      const line = body.insertRow(), arm = element("th", data.arms[row[ARM]]);
      arm.scope = "row";
      const told = row[TOLD] === null ? "undetermined" : data.texts[row[TOLD]];
      const said = element("td");
      said.append(element("span", data.texts[row[SAID]], row[TOLD] === null ? code : told));
      const graded = row[POINTS] > 0 && row[POINTS] < 100 ? ` (${row[POINTS]} of 100 points)` : "";
      line.append(arm, said, element("td", data.kinds[row[KIND]] + graded), element("td", told));
    }
    table.prepend(caption);
    words.append(element("h3", `${data.languages[rows[0][LANGUAGE]]}, ${data.tasks[item[1]]}, ${item[0]}`), question, gold, table);
    made.append(words);
    return made;
  }
  function show() {
    const groups = new Map();
    let count = 0;
    for (const row of data.rows.filter(fits)) {
      const key = `${row[ITEM]} ${row[LANGUAGE]}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
      count += 1;
    }
    const all = [...groups.values()], first = page * data.size, shown = all.slice(first, first + data.size);
    cards.replaceChildren(...shown.map(card));
    const range = shown.length ? `; questions ${first + 1} to ${first + shown.length} are shown` : "";
    status.textContent = `${count} answers to ${all.length} questions${range}.`;
    back.disabled = page === 0;
    on.disabled = first + data.size >= all.length;
  }
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  show();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("#answers-browser").forEach(answers);
