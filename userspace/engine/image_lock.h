// SPDX-License-Identifier: GPL-2.0-only
// Bytes have one writer: the locks on a file or block device that others of our kind look at, and
// the users in the kernel that take none.
//
// Three kinds of users do not see each other's locks, so each is looked for in its own way: a
// daemon of ours (flock), QEMU and its tools (open file description locks on single bytes), and the
// kernel (O_EXCL on a block device; for a file, the list of loop devices). All of these go with the
// open file description, that is, when the process is gone and its last request has ended.
#pragma once

#include "base/result.h"

#include <string>
#include <sys/types.h>

namespace vql {

// Take what @fd has open: alone, or with @share together with others that only read. Waits for as
// long as a process that is gone still has I/O there (at most 5 s): an old write that lands after
// a new one would undo it. Errors say who has it. @path and @name (the target's) are for messages.
result<void> lock_image(int fd, bool share, const std::string& path, const std::string& name);

// Refuse what @fd has open if a loop device has it for its backing store; with @share only if that
// loop device can be written. (Losetup looks at no lock: one that comes later is not seen.)
result<void> refuse_behind_loop(int fd, bool share, const std::string& path);

// What in the kernel has block device @device for its own: "mounted on /srv", "part of dm-3",
// "swap"; empty: nothing that is known.
std::string kernel_user_of(dev_t device);

// Does a process other than the owner of @fd say by QEMU's locks that it reads the image? (So does
// a daemon of ours.)
bool has_other_reader(int fd);

} // namespace vql
