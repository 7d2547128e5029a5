// Enqueues in a transaction of the program's own: what is rolled back never runs, what is committed does.
import pg from "pg";

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();

async function shout(text) {
  const { rows } = await client.query("select id, created from howdah.enqueue('shout', $1)", [{ text }]);
  return rows[0].id;
}

await client.query("begin");
const undone = await shout("nobody hears this");
await client.query("rollback");

await client.query("begin");
const done = await shout("hello");
await client.query("commit");

console.log(JSON.stringify({ undone, done }));
await client.end();
