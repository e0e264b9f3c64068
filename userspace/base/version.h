// SPDX-License-Identifier: GPL-2.0-only
// What was built: as git describes the tree, which is what a report of a fault has to name.
#pragma once

namespace vql {

// "v1.2-3-gabcdef", "abcdef-dirty"; "unknown" where the tree was no clone. Static storage.
const char* version();

} // namespace vql
