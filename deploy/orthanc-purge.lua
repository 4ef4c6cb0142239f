-- Has twistedproxy purge what is deleted in Orthanc, which is not in Orthanc's list of changes. For Orthanc's settings:
--
--   "LuaScripts": ["/etc/orthanc/orthanc-purge.lua"]
--
-- CACHE is the proxy's listener for administrators (--admin-listen), and the mount behind which this Orthanc is.
--
-- After a deletion Orthanc tells an ID and no UIDs. They are noted for each instance, about 120 bytes, when Orthanc starts and
-- when an instance is stored. What is deleted is purged by its series. A purge that fails is repeated with the next deletion,
-- the next series that is stable, or the next heartbeat where Orthanc has such.

CACHE = 'http://127.0.0.1:9100/dicomweb'
TIMEOUT = 5      -- seconds for a request to the proxy
WAITING = 10000  -- purges that wait for a proxy that cannot be reached, at most

local series = {}    -- paths, each once
local of = {}        -- the path of each instance's series, by its ID in Orthanc
local replaced = {}  -- how often an instance was stored again whose deletion was not told yet
local waiting = {}

-- What the proxy takes for a UID. Orthanc takes anything, and a purge that is refused would hold up all others.
local function is_uid(text)
   return type(text) == 'string' and #text <= 64 and text:find('^[0-9][0-9.]*$') ~= nil
      and text:find('%.%.') == nil and text:sub(-1) ~= '.'
end

local function note(id, study, uid)
   if not (is_uid(study) and is_uid(uid)) then return end
   local path = 'studies/' .. study .. '/series/' .. uid
   series[path] = series[path] or path
   of[id] = series[path]
end

local function purge()
   while #waiting > 0 do
      -- Orthanc logs why, where there is no good answer.
      local done = pcall(function ()
         if HttpDelete(CACHE .. '/' .. waiting[1] .. '/cache') == nil then error() end
      end)
      if not done then return end
      table.remove(waiting, 1)
   end
end

function Initialize()
   if SetHttpTimeout ~= nil then SetHttpTimeout(TIMEOUT) end  -- else Orthanc's setting HttpTimeout holds
   local since, page = 0, 100
   local studies = {}
   repeat
      local found = ParseJson(RestApiGet('/series?expand&since=' .. since .. '&limit=' .. page, true))
      for _, one in ipairs(found) do
         local parent = one['ParentStudy']
         studies[parent] = studies[parent] or
            ParseJson(RestApiGet('/studies/' .. parent, true))['MainDicomTags']['StudyInstanceUID']
         for _, id in ipairs(one['Instances']) do
            note(id, studies[parent], one['MainDicomTags']['SeriesInstanceUID'])
         end
      end
      since = since + page
   until #found < page
end

function OnStoredInstance(id, tags)
   if of[id] ~= nil then replaced[id] = (replaced[id] or 0) + 1 end
   note(id, tags['StudyInstanceUID'], tags['SeriesInstanceUID'])
end

function OnDeletedInstance(id)
   local path = of[id]
   if path == nil then return end
   if replaced[id] == nil then
      of[id] = nil
   else
      replaced[id] = replaced[id] > 1 and replaced[id] - 1 or nil
   end
   if waiting[#waiting] ~= path and #waiting < WAITING then table.insert(waiting, path) end
   purge()
end

function OnStableSeries()
   purge()
end

function OnHeartBeat()
   purge()
end
