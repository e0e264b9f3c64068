// SPDX-License-Identifier: GPL-2.0-only
// vqlane reload: what the daemon changed, and what it did not.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace vql {

// For people, a line for each thing; @report is the daemon's (daemon/reload.h).
std::string reload_text(const nlohmann::json& report);
// Was nothing refused?
bool reload_complete(const nlohmann::json& report);

} // namespace vql
