// BullMQ's process on Redis: see bullmq_redis.py.
import { handle, main, never, redis, require, sendInTime, settings, task } from "../process.mjs";

const { Queue, Worker } = require("bullmq");
const IORedis = require("ioredis");
const Redis = IORedis.Redis ?? IORedis;
const options = { removeOnComplete: true, removeOnFail: true };
const connect = () => new Redis(redis, { maxRetriesPerRequest: null });

async function open() {
  const queue = new Queue("job", { connection: connect() });
  await queue.waitUntilReady();
  return queue;
}

main({
  async setup() { await connect().flushdb(); },
  async fill() {
    const queue = await open();
    for (let first = 0; first < task.count; first += 1000) {
      const size = Math.min(1000, task.count - first);
      await queue.addBulk(Array.from({ length: size }, (_, at) => ({ name: "job", data: { n: first + at, t: 0, fails: false, pad: "p".repeat(40) }, opts: options })));
    }
  },
  async send() {
    const queue = await open();
    await sendInTime((payload) => queue.add("job", payload, options));
  },
  async work() {
    const worker = new Worker("job", (job) => handle(job.data), { connection: connect(), concurrency: settings.concurrency });
    worker.on("error", (error) => process.stderr.write(`${error}\n`));
    await never;
  },
});
