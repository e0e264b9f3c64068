// SPDX-License-Identifier: GPL-2.0-only
// A configuration compared with this machine, after the text itself (config_files.h).
#pragma once

#include "daemon/config_files.h"

#include <chrono>

namespace vql {

// How far to look. Files and devices are for --check alone: a daemon must not wait for storage
// here, and finds out about each disk by itself when it opens it.
enum class look { daemon, storage };

// Note in @text.found what does not fit this machine. Nothing can start with CPUs that are not
// there or not for us, or a size beyond what type null can hold; nor should anything with a run
// directory that cannot be, or two names of one file or device. One disk has to wait, and that is
// noted as pending, for accounts that nobody has, a socket where none can be, a target that is not
// there, does not answer within @limit, is of the wrong kind or too small. Looks, and changes
// nothing; what can hang, as a stat() of a server that is gone does, happens in threads that are
// left behind then.
void check_machine(config_text& text, look how,
                   std::chrono::milliseconds limit = std::chrono::seconds(5));

// Why the process cannot run on @cpu; empty: it can.
std::string why_not_on(int cpu);

} // namespace vql
