-- Posts the files of a list one after the other: wrk -s load.lua URL -- LIST CONTENT_TYPE [RATE]
-- With a RATE, as many a second while connections last, else as many as are answered.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long s; long ns; } timespec;
  int clock_gettime(int clock, timespec *now);
]]
local CLOCK_MONOTONIC = 1
local requests, last = {}, 0
local time, due_s = ffi.new("timespec"), 0

local function now_s()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.s) + tonumber(time.ns) / 1e9
end

function init(args)
  if args[3] then
    local step_s = 1 / tonumber(args[3])
    -- wrk looks for this name once, after init.
    function delay()
      local now = now_s()
      due_s = math.max(due_s + step_s, now)
      return math.floor((due_s - now) * 1000 + 0.5)
    end
  end
  for path in io.lines(args[1]) do
    local file = assert(io.open(path, "rb"))
    local body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format("POST", nil, { ["Content-Type"] = args[2] }, body)
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"num_answers": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "num_errors": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
