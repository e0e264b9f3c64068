// SPDX-License-Identifier: GPL-2.0-only
// Drives change hands: from the kernel's nvme driver to the module, and back.
#pragma once

#include "cli/device.h"

#include <functional>

namespace vql {

// Takes one line of progress, or of what the operator should know, without its newline.
using progress = std::function<void(const std::string& line)>;

// Gives the drive that @name means (as for find_device) to the module. Refuses one that is in use;
// @force overrides objection::unforced. When the module cannot have it, it is put back.
result<void> bind_device(const host_tree& host, const std::string& name, bool force,
                         const progress& say);

// Gives it back to the kernel's nvme driver. Refuses while a program has it open, unless @force.
result<void> unbind_device(const host_tree& host, const std::string& name, bool force,
                           const progress& say);

} // namespace vql
