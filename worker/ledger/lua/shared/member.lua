-- The parts of a member, which names a job as tenant/adapter_id.
--
-- tenant_of(member)  the tenant
-- record_of(member)  the key of the job's record

local function tenant_of(member) return string.sub(member, 1, string.find(member, '/', 1, true) - 1) end
local function record_of(member)
  local tenant = tenant_of(member)
  return 'qs:' .. tenant .. ':adapter:' .. string.sub(member, #tenant + 2)
end
