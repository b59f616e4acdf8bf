"""Systems that solve the same problem, measured beside this project on the same PostgreSQL and the same cores.

Each system receives the same versions of the same objects, in the same order, over the same path and header. Each
runs two server processes, and keeps its own library's defaults unless its module says otherwise. The benchmark runs one
system at a time.

| | this project | `@supabase/stripe-sync-engine` | `procrastinate` |
|---|---|---|---|
| source | WorkOS organizations | Stripe products | WorkOS organizations |
| 200 means | stored in the inbox | applied | stored as a job |
| applied by | `workos-sync worker`, in batches | the request | a worker, one job per event |
| newest is decided by | `updated_at`, then the event's time | the event's time, in seconds | `updated_at` |
| after a delete | a tombstone | nothing | nothing |
| also writes | inbox, changes, outcome of each event | nothing | jobs and their events |
"""
