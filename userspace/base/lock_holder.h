// SPDX-License-Identifier: GPL-2.0-only
// Who holds a lock on a file, and whether that process still lives. A process that was killed keeps
// its locks until the last of its I/O has ended, which on hung storage may be never.
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <string>
#include <sys/stat.h>
#include <sys/types.h>

namespace vql {

// Who holds a flock on the file of @st, or 0 when that cannot be told.
pid_t lock_holder(const struct stat& st);

// Was process @pid killed, or is it ending by itself, so that none of its code runs any more? False
// also when that cannot be told.
bool process_is_ending(pid_t pid);

// Take file @name in @folder, which is made if it is not there, as the lock of something that one
// daemon at a time has. One that was killed keeps its lock while storage hangs, and does nothing
// any more: its place is taken, with a word in the log. @busy is the error if another has it.
result<unique_fd> take_lock_file(const std::string& folder, const std::string& name,
                                 const std::string& busy);

} // namespace vql
