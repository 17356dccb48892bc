/** Create an element with a class, a text and children. Texts, such as titles, are never parsed as markup. */
export function make(tag, name, text, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}
