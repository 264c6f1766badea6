-- audit(context, action, subject, details): add an entry to the audit log (`worker/ledger/audit.py`) in the atomic step of the
-- change. `context` is the argument from `audit.script_context`; `details` is a table.
local function audit(context, action, subject, details)
  local entry = cjson.decode(context)
  for _, stream in ipairs(entry.streams) do
    redis.call('XADD', stream[1], 'MAXLEN', '~', string.format('%.0f', stream[2]), '*', 'action', action, 'tenant', entry.tenant,
               'subject', subject, 'actor', entry.actor, 'details', cjson.encode(details))
  end
end
