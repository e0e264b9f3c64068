// SPDX-License-Identifier: GPL-2.0-only
// Who another process is, as one at the other end of a Unix socket: for the log and the operator.
#pragma once

#include <string>
#include <sys/types.h>

namespace vql {

struct peer {
    pid_t pid = 0;       // 0: not one that this process can name, as in another PID namespace
    std::string command; // as ps -o comm shows it; empty when the process is gone

    // "pid 4711 (qemu-system-x86)"
    std::string text() const;
};

// The process that connected to @socket, or made it (SO_PEERCRED). It may have handed it on.
peer peer_of(int socket);
peer process_of(pid_t pid);

} // namespace vql
