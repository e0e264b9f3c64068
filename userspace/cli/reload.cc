// SPDX-License-Identifier: GPL-2.0-only
#include "cli/reload.h"

#include <nlohmann/json.hpp>

namespace vql {

using nlohmann::json;

std::string reload_text(const json& report) {
    std::string text;
    for (const char* what : {"added", "removed", "replaced", "resized", "changed"})
        for (const json& name : report.at(what))
            text += std::string(what) + " " + name.get<std::string>() + "\n";
    // A daemon of an earlier version does not say it.
    for (const json& one : report.value("waiting", json::array()))
        text += "waiting: " + one.at("name").get<std::string>() + ": " +
                one.at("why").get<std::string>() + "\n";
    for (const json& one : report.at("refused"))
        text += "not done: " + one.at("name").get<std::string>() + ": " +
                one.at("why").get<std::string>() + "\n";
    return text.empty() ? "nothing differs\n" : text;
}

bool reload_complete(const json& report) {
    return report.at("refused").empty();
}

} // namespace vql
