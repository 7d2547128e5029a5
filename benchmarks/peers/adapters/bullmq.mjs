// BullMQ's process on PostgreSQL: see bullmq.py.
import { handle, main, never, require, sendInTime, settings, task, url } from "../process.mjs";

const { Queue, Worker, createPostgresBackend } = require("bullmq");
const options = { removeOnComplete: true, removeOnFail: true };
const connection = (max, migrate = false) => ({ connectionString: url, max, migrate });
const complain = (error) => process.stderr.write(`${error}\n`);

async function open(max, migrate = false) {
  const queue = new Queue("job", { connection: connection(max, migrate) }, createPostgresBackend);
  queue.on("error", complain);
  await queue.waitUntilReady();
  return queue;
}

main({
  async setup() { await (await open(2, true)).close(); },
  async fill() {
    const queue = await open(4);
    for (let first = 0; first < task.count; first += 1000) {
      const size = Math.min(1000, task.count - first);
      await queue.addBulk(Array.from({ length: size }, (_, at) => ({ name: "job", data: { n: first + at, t: 0, fails: false, pad: "p".repeat(40) }, opts: options })));
    }
    await queue.close();
  },
  async send() {
    const queue = await open(2);
    await sendInTime((payload) => queue.add("job", payload, options));
    await queue.close();
  },
  async work() {
    const { concurrency, pool } = settings;
    new Worker("job", (job) => handle(job.data), { connection: connection(pool), concurrency }, createPostgresBackend).on("error", complain);
    await never;
  },
});
