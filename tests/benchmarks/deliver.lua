-- For wrk: sends each line of a file once, a signature, a tab and a body; prints what came of it as JSON.
local requests, number = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    local signature, body = line:match("^([^\t]*)\t(.*)$")
    local headers = { ["WorkOS-Signature"] = signature, ["Content-Type"] = "application/json" }
    requests[#requests + 1] = wrk.format("POST", wrk.path, headers, body)
  end
end

function request()
  number = number % #requests + 1
  return requests[number]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format('{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f}\n', summary.requests,
    summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
