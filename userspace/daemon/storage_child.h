// SPDX-License-Identifier: GPL-2.0-only
// What may hang in storage is tried by a child process first, which runs this program anew and has
// no file of the daemon's but the one concerned.
//
// A thread that hangs in the kernel cannot be killed, and keeps its whole process: a daemon with
// one, once killed, would keep its sockets, locks and queue pairs, and so keep its guests from the
// next daemon, until storage answers. A child that hangs keeps what it has hung on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace vql {

// Each returns when storage has answered, whatever it said: who calls it then does the same, and
// learns the outcome. Without a child (none could be started) at once. For a worker's thread.
void try_to_open(const std::string& path, bool read_only);
// Makes the regular file of @fd @bytes long, if it is shorter.
void try_to_grow(int fd, uint64_t bytes);

// If the command line makes this process such a child: do its work; then its exit status.
std::optional<int> storage_child(int argc, char** argv);

} // namespace vql
