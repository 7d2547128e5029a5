// graphile-worker's process: see graphile_worker.py.
import { handle, main, query, require, sendBatches, sendInTime, settings, url } from "../process.mjs";

const worker = require("graphile-worker");
const preset = { worker: { connectionString: url } };

main({
  async setup() {
    await worker.runMigrations({ preset });
    const utils = await worker.makeWorkerUtils({ connectionString: url });
    await utils.addJob("job", {}); // makes the task's row, which the fill needs
    await utils.release();
    await query("delete from graphile_worker._private_jobs");
  },
  async send() {
    const utils = await worker.makeWorkerUtils({ connectionString: url, maxPoolSize: 2 });
    await sendInTime((payload) => utils.addJob("job", payload));
    await utils.release();
  },
  async flood() {
    const utils = await worker.makeWorkerUtils({ connectionString: url, maxPoolSize: 2 });
    await sendBatches((payloads) => utils.addJobs(payloads.map((payload) => ({ identifier: "job", payload }))));
    await utils.release();
  },
  async work() {
    const logger = new worker.Logger(() => (level, message) => {
      if (level === "error" || level === "warning") process.stderr.write(message + "\n");
    });
    const { jobs, queue } = settings;
    const options = {
      ...preset.worker,
      concurrentJobs: jobs,
      maxPoolSize: Math.min(Math.max(10, jobs + 2), 40),
      pollInterval: 2000,
      localQueue: { size: queue },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    };
    const runner = await worker.run({ preset: { worker: options }, logger, noHandleSignals: true, taskList: { job: handle } });
    await runner.promise;
  },
});
