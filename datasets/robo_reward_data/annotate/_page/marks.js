"use strict";
// What can be done to the marks of an episode: pure functions of {names, boundaries} and the episode's length.
// boundaries are frames, increasing, in 0..length; a stage is named for each pair of neighbors.

const stageName = (i) => state.offered[i] ?? `stage_${i + 1}`;

/** A first mark also bounds the episode: what people look for are the moments between its ends. */
function addMark(marks, frame, length) {
  if (marks.boundaries.includes(frame)) return marks;
  if (!marks.boundaries.length) {
    const boundaries = [...new Set([0, frame, length])];
    return { boundaries, names: boundaries.slice(1).reduce((names, _, i) => [...names, freshName(names, i)], []) };
  }
  const boundaries = [...marks.boundaries, frame].sort((a, b) => a - b);
  const at = boundaries.indexOf(frame);
  const names = [...marks.names];
  names.splice(Math.min(at, names.length), 0, freshName(names, at));
  return { boundaries, names };
}

/** Without an inner or outer boundary, the stage after it (the last: before it) goes. */
function removeMark(marks, index) {
  const boundaries = marks.boundaries.filter((_, i) => i !== index);
  const names = marks.names.filter((_, i) => i !== Math.min(index, marks.names.length - 1));
  return { boundaries, names: boundaries.length > 1 ? names : [] };
}

/** Moves a boundary as far as its neighbors let it. */
function moveMark(marks, index, frame, length) {
  const low = index ? marks.boundaries[index - 1] + 1 : 0;
  const high = index + 1 < marks.boundaries.length ? marks.boundaries[index + 1] - 1 : length;
  const boundaries = [...marks.boundaries];
  boundaries[index] = Math.max(low, Math.min(high, frame));
  return { ...marks, boundaries };
}

/** Whether another stage has that name: stages are told apart by theirs. */
const isTaken = (marks, index, name) => marks.names.some((other, i) => i !== index && other.trim() === name);

const renameStage = (marks, index, name) =>
  ({ ...marks, names: marks.names.map((old, i) => (i === index ? name : old)) });

/** The same shares of an episode of another length; null where it is too short for so many stages. */
function scaleMarks(marks, from, to) {
  const boundaries = marks.boundaries.map((frame) => Math.round((frame / from) * to));
  for (let i = 1; i < boundaries.length; i++) boundaries[i] = Math.max(boundaries[i], boundaries[i - 1] + 1);
  for (let i = boundaries.length - 1, most = to; i >= 0; i--, most--) boundaries[i] = Math.min(boundaries[i], most);
  return boundaries[0] < 0 ? null : { boundaries, names: [...marks.names] };
}

function freshName(names, at) {
  let name = stageName(at);
  for (let i = names.length; names.includes(name); i++) name = `stage_${i + 1}`;
  return name;
}

const sameMarks = (a, b) => JSON.stringify([a.names, a.boundaries]) === JSON.stringify([b.names, b.boundaries]);

/** Stage and progress of a frame: tau within the stage, Phi with equal weights; null without stages. */
function progressAt(marks, frame) {
  const k = marks.boundaries.length - 1;
  if (k < 1) return null;
  let stage = marks.boundaries.findLastIndex((boundary) => boundary <= frame);
  stage = Math.max(0, Math.min(k - 1, stage));
  const [start, end] = marks.boundaries.slice(stage, stage + 2);
  const tau = Math.max(0, Math.min(1, (frame - start) / (end - start)));
  return { stage, tau, phi: (stage + tau) / k };
}
