// SPDX-License-Identifier: GPL-2.0-only
// Drives that are the module's again after a reboot: a udev rule for each, and the module's name
// where the system looks for modules to load. Nothing else remembers them.
#pragma once

#include "cli/device_bind.h"

#include <string>

namespace vql {

// Is there a rule for the function?
bool is_persistent(const host_tree& host, const std::string& bdf);

// From the next boot on the drive that @name means, which vqlane has, is given to the module: where
// udev finds a function at its address and of its vendor and device, `vqlane device restore` takes
// it. Written atomically.
// @program is the path of this command.
result<void> persist_device(const host_tree& host, const std::string& name,
                            const std::string& program, const progress& say);

// No more; without a rule it does nothing.
result<void> forget_device(const host_tree& host, const std::string& bdf, const progress& say);

// What the rule runs: binds the drive as bind_device() does without force, unless it is another
// drive than @serial, as after cards have moved. Then it is left to the kernel, and the error says
// so.
result<void> restore_device(const host_tree& host, const std::string& bdf,
                            const std::string& serial, const progress& say);

} // namespace vql
