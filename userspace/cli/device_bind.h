// SPDX-License-Identifier: GPL-2.0-only
// Drives change hands: from the kernel's nvme driver to the module, and back.
#pragma once

#include "cli/device.h"

#include <functional>

namespace vql {

// Takes one line of progress, or of what the operator should know, without its newline.
using progress = std::function<void(const std::string& line)>;

// Gives the drive that @name means (as for find_device) to the module. Refuses one that is in use;
// @force overrides objection::unforced. When the module cannot have it, it is put back. Where the
// IOMMU invalidates lazily (group type DMA-FQ) it is made strict (DMA), or the drive stays where it
// is: the module counts only that as translated. Others in the group, which keep it from that, are
// named.
result<void> bind_device(const host_tree& host, const std::string& name, bool force,
                         const progress& say);

// Gives it back to the kernel's nvme driver, and the IOMMU group the type that it had. Refuses
// while a program has it open, unless @force. It is not bound at boot any more.
result<void> unbind_device(const host_tree& host, const std::string& name, bool force,
                           const progress& say);

// For device_boot.cc. From the module to the nvme driver: what unbind_device() does once it may.
// @active: namespaces whose block devices are waited for.
result<void> give_back(const host_tree& host, const std::string& bdf, const progress& say,
                       size_t active = 1);
// No driver is told to take the function any more; where none has it, those that like it are asked.
result<void> release_override(const host_tree& host, const std::string& bdf);

} // namespace vql
