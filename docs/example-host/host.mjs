// A minimal product in Node that uses workos-sync over HTTP: admins see the keys of their workspace, others do not.
//
// It needs no package. Authentication is left out: the header `X-User` names the user, which a real product must take
// from its own session.

import { createServer } from "node:http";

const { MIRROR_URL, MIRROR_TOKEN, PORT = "3000" } = process.env;
const MAX_STALENESS = 60; // Upper bound on the age, in seconds, of what decides whether somebody may enter.
const TIMEOUT = 2000; // Milliseconds.

class StaleError extends Error {}

/** Returns a user's role in a workspace, at most MAX_STALENESS old; null for no access. Throws a StaleError. */
async function roleOf(userId, organizationId) {
  const query = new URLSearchParams({
    user_id: userId,
    organization_id: organizationId,
    max_staleness: MAX_STALENESS,
  });
  let answer;
  try {
    answer = await fetch(`${MIRROR_URL}/api/v1/access?${query}`, {
      headers: { authorization: `Bearer ${MIRROR_TOKEN}` },
      signal: AbortSignal.timeout(TIMEOUT),
    });
  } catch (error) {
    throw new StaleError("the mirror does not answer", { cause: error });
  }
  // Whatever is not a role is no access: a stale mirror, a wrong token, a proxy's page.
  if (!answer.ok) throw new StaleError(`the mirror answered ${answer.status}`);
  return (await answer.json()).role;
}

/** Returns the status and the body of an answer to `GET /workspaces/:id/keys`. */
async function keys(userId, organizationId) {
  const role = await roleOf(userId, organizationId);
  return role === "admin" ? [200, { organization_id: organizationId, keys: ["sk_1"] }] : [403, {}];
}

async function answer(request) {
  const [, organizationId] = request.url.match(/^\/workspaces\/([\w-]+)\/keys$/) ?? [];
  const userId = request.headers["x-user"];
  if (organizationId === undefined) return [404, {}];
  if (userId === undefined) return [401, {}];
  try {
    return await keys(userId, organizationId);
  } catch (error) {
    console.error(error.message);
    return [503, { error: "access is not known; try again" }]; // Fail closed.
  }
}

createServer(async (request, response) => {
  const [status, body] = await answer(request);
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}).listen(Number(PORT), "127.0.0.1");
