// Lists whose rows stay the same elements as long as they are about the same thing.

/** Sets a text only if it is another one, so that what is selected stays selected. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setIcon(element, icon) {
  element.querySelector("use").setAttribute("href", `#icon-${icon}`);
}

export class Table {
  #body;
  #empty;
  #template;
  #fill;
  #rows = new Map();

  /** `fill(part, item)` puts an item into a row; `part(name)` is one of its parts. */
  constructor(name, row, fill) {
    this.#body = document.querySelector(`#${name} tbody`);
    this.#empty = document.getElementById(`${name}-empty`);
    this.#template = document.getElementById(row);
    this.#fill = fill;
  }

  /** Shows these items in this order. `key` says whether two are about the same thing. */
  show(items, key) {
    const before = this.#rows;
    this.#rows = new Map();
    let place = this.#body.firstElementChild;
    for (const item of items) {
      let name = key(item);
      while (this.#rows.has(name)) name += "'";
      const row = before.get(name) ?? this.#make();
      before.delete(name);
      this.#rows.set(name, row);
      this.#fill((part) => row.parts.get(part), item);
      if (row.element === place) {
        place = place.nextElementSibling;
      } else {
        this.#body.insertBefore(row.element, place);
      }
    }
    for (const row of before.values()) row.element.remove();
    const isEmpty = this.#rows.size === 0;
    this.#empty.hidden = !isEmpty;
    this.#body.parentElement.hidden = isEmpty;
  }

  #make() {
    const element = this.#template.content.firstElementChild.cloneNode(true);
    const parts = new Map();
    for (const part of element.querySelectorAll("[data-part]")) parts.set(part.dataset.part, part);
    return { element, parts };
  }
}
