// The process side that all Node peers share: what process.py is for Python.
import { createRequire } from "node:module";

export const task = JSON.parse(process.env.PEERS_TASK);
export const { url, redis, settings } = task;
export const modules = process.env.PEERS_MODULES;
export const require = createRequire(`${modules}/x.js`);
export const never = new Promise(() => {});

const STATEMENT = "update accounts set hits = hits + 1 where id = $1";
const ACCOUNTS = 1000, CONNECTIONS = 10;
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const cpu = () => { const used = process.cpuUsage(); return (used.user + used.system) / 1e6; };
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function say(event, facts = {}) {
  process.stdout.write(JSON.stringify({ event, at: now(), ...facts }) + "\n");
}

const ends = [], waits = [], failed = new Set();
let began = false, cpuAtFirst = 0, wanted = task.count;

function begin() {
  if (began) return;
  began = true;
  cpuAtFirst = cpu();
  say("first");
  if (task.seconds) setTimeout(() => { if (ends.length < wanted) { wanted = -1; tell(); } }, task.seconds * 1000);
}

function end() {
  ends.push(performance.now() / 1000);
  if (ends.length === wanted) tell();
}

function tell() {
  const count = ends.length;
  if (!count) return say("handled", { handled: 0, cpu: 0, rss: 0, tenths: Array(10).fill(0) });
  const marks = Array.from({ length: 11 }, (_, tenth) => ends[Math.min(Math.floor((tenth * count) / 10), count - 1)]);
  const tenths = marks.slice(1).map((mark, at) => (mark > marks[at] ? count / 10 / (mark - marks[at]) : 0));
  say("handled", { handled: count, cpu: cpu() - cpuAtFirst, rss: process.resourceUsage().maxRSS / 1024, tenths });
}

let pool;
function statement(values) {
  const pg = require("pg");
  pool ??= new pg.Pool({ connectionString: url, max: CONNECTIONS, min: CONNECTIONS });
  return pool.query({ name: "job", text: STATEMENT, values });
}

const handlers = {
  async noop() { begin(); end(); },
  async latency(payload) {
    waits.push(now() - payload.t);
    if (waits.length === task.count) say("waits", { waits });
  },
  async wait() { begin(); await sleep(5); end(); },
  async sql(payload) { begin(); await statement([payload.n % ACCOUNTS]); end(); },
  async failing(payload) {
    begin();
    if (payload.fails && !failed.has(payload.n)) { failed.add(payload.n); throw new Error("as the payload says"); }
    end();
  },
};
export const handle = handlers[task.handler ?? "noop"];

const newPayload = () => ({ n: 0, t: now(), fails: false, pad: "p".repeat(40) });

export async function sendInTime(send) {
  await send(newPayload());
  await sleep(1000);
  let due = performance.now();
  for (let sent = 0; sent < task.count; sent++) {
    due += task.gap * 1000;
    await send(newPayload());
    await sleep(Math.max(due - performance.now(), 0));
  }
}

export async function sendBatches(send) {
  await send([newPayload()]);
  await sleep(1000);
  let due = performance.now(), late = 0;
  for (let sent = 0; sent < task.count; sent += task.batch) {
    due += task.gap * 1000;
    const payload = newPayload();
    await send(Array(task.batch).fill(payload));
    late = Math.max(late, performance.now() - due);
    await sleep(Math.max(due - performance.now(), 0));
  }
  say("sent", { late: late / 1000 });
}

export async function query(text) {
  const pg = require("pg");
  const client = new pg.Client(url);
  await client.connect();
  try { return await client.query(text); } finally { await client.end(); }
}

export async function main(verbs) {
  await verbs[process.argv[2]]();
  say("ok");
  process.exit(0);
}
