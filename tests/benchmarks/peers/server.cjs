// The Node peer: @supabase/stripe-sync-engine behind node:http, in as many processes as there are workers.
// Usage: node server.cjs PORT DATABASE_URL SECRET WORKERS. What it does and does not do: node.py.
"use strict";

const cluster = require("node:cluster");
const http = require("node:http");
const { StripeSync, runMigrations } = require("@supabase/stripe-sync-engine");

const [port, databaseUrl, secret, workers] = process.argv.slice(2);
const CONNECTIONS = 10; // to PostgreSQL, for each process: the engine's default

function answer(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
  response.end(text);
}

async function wholeBody(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function serve() {
  const engine = new StripeSync({
    poolConfig: { connectionString: databaseUrl, max: CONNECTIONS },
    stripeSecretKey: "sk_test_bench",
    stripeWebhookSecret: secret,
  });
  const server = http.createServer(async (request, response) => {
    if (request.method === "GET") return answer(response, 200, {});
    try {
      // The load generator has one header for all systems; its value is signed as Stripe signs.
      await engine.processWebhook(await wholeBody(request), request.headers["workos-signature"]);
      answer(response, 200, { received: true });
    } catch (error) {
      console.error(error);
      answer(response, 500, { error: error.message });
    }
  });
  server.listen(Number(port), "127.0.0.1");
}

async function start() {
  await runMigrations({ databaseUrl, schema: "stripe" });
  for (let number = 0; number < Number(workers); number += 1) cluster.fork();
}

if (cluster.isPrimary) start();
else serve();
