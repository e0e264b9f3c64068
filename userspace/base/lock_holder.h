// SPDX-License-Identifier: GPL-2.0-only
// Who holds a lock on a file, and whether that process still lives. A process that was killed keeps
// its locks until the last of its I/O has ended, which on hung storage may be never.
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <cstdint>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <sys/types.h>

namespace vql {

// "1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF", in /proc/locks and behind "lock:" in a
// descriptor's fdinfo (proc(5)). The pid of an OFDLCK is -1.
struct lock_line {
    std::string type;
    pid_t pid = 0;
    dev_t device = 0;
    unsigned long inode = 0;
    uint64_t first = 0, last = 0; // bytes; neighbours that one holds are one line

    bool is_on(const struct stat& st) const;
};
// Nothing for a line that is of another form, as of one who waits.
std::optional<lock_line> parse_lock(const std::string& text);

// Who holds a flock on the file of @st, or 0 when that cannot be told.
pid_t lock_holder(const struct stat& st);

// Was process @pid killed, or is it ending by itself, so that none of its code runs any more? False
// also when that cannot be told.
bool process_is_ending(pid_t pid);

// Take file @name, which is made if it is not there, in @folder, which is, as the lock of something
// that one daemon at a time has. One that was killed keeps its lock while storage hangs, and does
// nothing any more: its place is taken, with a word in the log. @busy is the error if another has
// it.
result<unique_fd> take_lock_file(const std::string& folder, const std::string& name,
                                 const std::string& busy);

} // namespace vql
