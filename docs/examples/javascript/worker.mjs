// A whole worker for Howdah in JavaScript: node worker.mjs. Its own jobs, beside the daemon's, under the same fence.
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import pg from "pg";

const handlers = {
  async shout(job) {
    return { text: String(job.payload.text).toUpperCase() };
  },
};

const worker = `${hostname()}:${process.pid}:${randomUUID()}`; // no two processes ever share a name
const queues = (process.env.QUEUES ?? "default").split(","), slots = 10;
const database = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: slots + 1 });
const running = new Set();
let stopping = false, wake = () => {};

async function run(job) {
  try {
    const result = await handlers[job.kind](job);
    await database.query("select howdah.complete($1, $2, $3)", [job.id, job.lease, JSON.stringify(result ?? null)]);
  } catch (error) {
    if (error.code === "JB008") return; // the lease is lost: somebody else has the job, or it has ended
    const told = JSON.stringify({ type: error.name, message: error.message, stack: error.stack });
    await database.query("select howdah.fail($1, $2, $3)", [job.id, job.lease, told]).catch(console.error);
  }
}

const ear = await database.connect();
await ear.query("listen howdah");
ear.on("notification", ({ payload }) => queues.includes(payload) && wake());
setInterval(() => database.query("select howdah.beat($1)", [worker]).catch(console.error), 20_000).unref();
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => { stopping = true; wake(); });

while (!stopping) {
  const free = slots - running.size;
  const { rows } = free === 0 ? { rows: [] }
    : await database.query("select * from howdah.claim($1, $2, $3, $4)", [worker, queues, Object.keys(handlers), free])
      .catch((error) => (console.error(error), { rows: [] }));
  for (const job of rows) {
    const attempt = run(job).finally(() => { running.delete(attempt); wake(); });
    running.add(attempt);
  }
  if (rows.length === 0) await new Promise((resolve) => { wake = resolve; setTimeout(resolve, 1_000); });
}
await Promise.all(running);
process.exit(0);
