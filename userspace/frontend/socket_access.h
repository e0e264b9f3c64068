// SPDX-License-Identifier: GPL-2.0-only
// Who may connect to a disk's socket.
#pragma once

#include "base/result.h"

#include <cstdint>
#include <string>
#include <sys/types.h>

namespace vql {

struct socket_access {
    uint32_t mode = 0600;
    // -1: ours, and for the group what the folder gives it (its own, where it is setgid).
    uid_t user = uid_t(-1);
    gid_t group = gid_t(-1);
};

// Give the socket at @path to whom @access says. Nobody gets in meanwhile who does not before or
// after. An error names what is missing.
result<void> give_access(const std::string& path, const socket_access& access);

// Why those whom the socket at @path was given to cannot get there; empty: they can, as far as its
// folder goes.
std::string why_out_of_reach(const std::string& path);

} // namespace vql
