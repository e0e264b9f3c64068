// SPDX-License-Identifier: GPL-2.0-only
// Users and groups by name or number.
#pragma once

#include "base/result.h"

#include <string>
#include <sys/types.h>

namespace vql {

// The number of user @name, which may be a number. An error when nobody has that name.
result<uid_t> user_id(const std::string& name);
result<gid_t> group_id(const std::string& name);

} // namespace vql
