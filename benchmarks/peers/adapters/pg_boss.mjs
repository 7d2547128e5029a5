// pg-boss's process: see pg_boss.py.
import { pathToFileURL } from "node:url";
import { handle, main, modules, never, sendBatches, sendInTime, settings, task, url } from "../process.mjs";

const { PgBoss } = await import(pathToFileURL(`${modules}/pg-boss/dist/index.js`));

async function start(options = {}) {
  const boss = new PgBoss({ connectionString: url, max: 10, ...options });
  boss.on("error", (error) => process.stderr.write(`${error}\n`));
  await boss.start();
  return boss;
}

main({
  async setup() {
    const boss = await start();
    await boss.createQueue("job", { notify: true, retryLimit: 2, retryDelay: 1 });
    await boss.stop({ graceful: false });
  },
  async send() {
    const boss = await start({ supervise: false, schedule: false, max: 1 });
    await sendInTime((payload) => boss.send("job", payload));
    await boss.stop({ graceful: false });
  },
  async flood() {
    const boss = await start({ supervise: false, schedule: false, max: 1 });
    await sendBatches((payloads) => boss.insert("job", payloads.map((data) => ({ data }))));
    await boss.stop({ graceful: false });
  },
  async work() {
    const boss = await start({ useListenNotify: true });
    const { workers, batch, poll } = settings;
    const options = {
      batchSize: batch,
      localConcurrency: workers,
      burstWhenBatchFull: batch > 1,
      pollingIntervalSeconds: 0.5,
      notifyPollingIntervalSeconds: poll,
    };
    if (task.handler === "failing") {
      // Each job of a batch ends for itself: otherwise one that fails takes the whole batch with it.
      await boss.work("job", { ...options, perJobResults: true }, (jobs) =>
        Promise.all(jobs.map((job) => handle(job.data).then(
          () => ({ id: job.id, status: "completed" }),
          (error) => ({ id: job.id, status: "failed", output: { message: error.message } }),
        ))));
    } else {
      await boss.work("job", options, async (jobs) => {
        await Promise.all(jobs.map((job) => handle(job.data)));
      });
    }
    await never;
  },
});
