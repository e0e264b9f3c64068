// SPDX-License-Identifier: GPL-2.0-only
// A configuration that was read again, compared with what runs.
#pragma once

#include "base/event_loop.h"
#include "daemon/config.h"
#include "daemon/server.h"
#include "daemon/state.h"

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

// A disk that is there, as a plan sees it.
struct running_disk {
    disk_config settings; // as it was asked for
    uint64_t bytes = 0;   // its size now; 0: it is not served
    bool connected = false;
};

// What has to change so that what runs is as @next says.
struct reload_plan {
    std::vector<std::string> remove;  // disks that are not in the files any more
    std::vector<std::string> replace; // … that differ in what only a new one has
    std::vector<std::string> add;     // … that are new
    std::vector<std::string> drop;    // targets that are not there any more, or others
    struct growth {
        std::string name;
        uint64_t bytes;
    };
    std::vector<growth> grow;
    std::vector<std::string> access; // disks whose sockets are for others now
    struct refusal {
        std::string name, why;
    };
    std::vector<refusal> refused;
};

// @now is what @running began as. Disks that it does not know are transient: they stay as they are,
// unless @next knows them.
reload_plan plan_reload(const config& now, const config& next,
                        const std::vector<running_disk>& running);

// The keys of [daemon] that differ between @now and @next and need a restart.
std::vector<std::string> need_restart(const config& now, const config& next);

// Make what @s serves what @files say, with what commands did: a disk that a command removed comes
// back, or its note goes. One step after the other, each of which may be refused; a guest that is
// connected keeps its disk. @done with {"added", "removed", "replaced", "resized", "changed":
// names, "waiting" and "refused": [{"name", "why"}]}; all of it is logged, too. What is returned is
// to be called once a second until then: a step that takes too long is left to itself.
std::function<void()> apply_config(event_loop& loop, server& s, state_store& state,
                                   const config& files, std::function<void(nlohmann::json)> done);

} // namespace vql
