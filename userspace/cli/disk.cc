// SPDX-License-Identifier: GPL-2.0-only
#include "cli/disk.h"

#include "base/size.h"
#include "cli/table.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace vql {

namespace {

using nlohmann::json;

std::string or_dash(const std::string& text) {
    return text.empty() ? "-" : text;
}

// Strings or numbers, joined by commas.
std::string joined(const json& list) {
    std::string text;

    for (const json& item : list)
        text +=
            (text.empty() ? "" : ",") + (item.is_string() ? item.get<std::string>() : item.dump());
    return or_dash(text);
}

std::string number(const json& table, const char* key) {
    return std::to_string(table.at(key).get<uint64_t>());
}

// In which lanes the queues are, and why: "kernel (little to do) x3, poll (much to do)".
std::string lanes(const json& queues) {
    std::vector<std::pair<std::string, int>> kinds;
    for (const json& q : queues) {
        std::string kind = q.at("lane").get<std::string>();
        if (const auto why = q.at("why").get<std::string>(); !why.empty())
            kind += " (" + why + ")";
        const auto known = std::find_if(kinds.begin(), kinds.end(),
                                        [&](const auto& k) { return k.first == kind; });
        if (known == kinds.end())
            kinds.emplace_back(kind, 1);
        else
            known->second++;
    }
    std::string text;
    for (const auto& [kind, n] : kinds)
        text += (text.empty() ? "" : ", ") + kind + (n > 1 ? " x" + std::to_string(n) : "");
    return text;
}

} // namespace

result<json> parse_extent(const std::string& text) {
    const size_t second = text.rfind(':');
    const size_t first = second ? text.rfind(':', second - 1) : text.npos;

    if (first == text.npos || first == 0)
        return error{"\"" + text + "\" is not an extent, expected TARGET:OFFSET:LENGTH"};
    auto offset = parse_size(text.substr(first + 1, second - first - 1));
    if (!offset)
        return error{"offset of \"" + text + "\": " + offset.failure().text};
    auto length = parse_size(text.substr(second + 1));
    if (!length)
        return error{"length of \"" + text + "\": " + length.failure().text};
    return json{{"target", text.substr(0, first)}, {"offset", *offset}, {"length", *length}};
}

std::string disk_table(const json& disks) {
    table out({{"NAME"},
               {"SIZE", true},
               {"ACCESS"},
               {"CLIENT"},
               {"QUEUES", true},
               {"RUNNING", true},
               {"QUEUE SIZE", true},
               {"CHUNK", true},
               {"POLLERS"},
               {"LANE"},
               {"TARGETS"},
               {"POLICY"},
               {"SOCKET OR DEVICE"}});

    for (const json& d : disks)
        out.add({d.at("name").get<std::string>(), human_size(d.at("size").get<uint64_t>()),
                 d.at("read_only").get<bool>() ? "ro" : "rw",
                 d.at("connected").get<bool>() ? "yes" : "no", number(d, "queues"),
                 number(d, "queues_running"), number(d, "queue_size"),
                 human_size(d.at("chunk_size").get<uint64_t>()), joined(d.at("pollers")),
                 lanes(d.at("lanes")), joined(d.at("targets")),
                 or_dash(d.at("policy").get<std::string>()),
                 d.at(d.contains("socket") ? "socket" : "device").get<std::string>()});
    return out.text();
}

} // namespace vql
