"use strict";
// Helpers to build the page. Text always goes in as text nodes: data can never become markup.

const report = JSON.parse(document.getElementById("report-data").textContent);

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

/** An HTML element; function-valued attributes are event listeners. */
const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** An SVG element. */
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A number with a fixed count of decimals and a true minus sign; an en dash where there is none. */
const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");

const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

/** The index of the run [start, stop, label] that holds frame i, or null. */
const runAt = (runs, i) => (runs ?? []).find(([start, stop]) => start <= i && i < stop) ?? null;

/** An SVG path through points [x, y] (null breaks it); a lone point becomes a dot. */
function linePath(points) {
  let path = "";
  let open = false;
  points.forEach((point, i) => {
    if (point === null) {
      open = false;
      return;
    }
    path += `${open ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    if (!open && !points[i + 1]) path += "h0";
    open = true;
  });
  return path;
}
