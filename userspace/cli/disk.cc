// SPDX-License-Identifier: GPL-2.0-only
#include "cli/disk.h"

#include "base/nearest.h"
#include "base/size.h"
#include "cli/table.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace vql {

namespace {

using nlohmann::json;

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

// In which lanes the queues are, and with @reasons why: "kernel (little to do) x3, poll".
std::string lanes(const json& queues, bool reasons) {
    std::vector<std::pair<std::string, int>> kinds;
    for (const json& q : queues) {
        std::string kind = q.at("lane").get<std::string>();
        if (const auto why = q.at("why").get<std::string>(); reasons && !why.empty())
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

std::string state(const json& d) {
    return d.value("state", d.at("connected").get<bool>() ? "serving" : "ready");
}

std::string problem(const json& d) {
    const auto found = d.find("problem");
    return found != d.end() && found->is_string() ? found->get<std::string>() : "";
}

// Who has it: "qemu-system-x86 (1234)" where that is known, else yes or -.
std::string client_of(const json& d) {
    const auto who = d.find("client");
    if (who != d.end() && who->is_object())
        return who->at("command").get<std::string>() + " (" + number(*who, "pid") + ")";
    return d.at("connected").get<bool>() ? "yes" : "-";
}

std::string address(const json& d) {
    return d.at(d.contains("socket") ? "socket" : "device").get<std::string>();
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

result<void> choose_disks(json& disks, const disk_list_options& o) {
    if (!o.name.empty()) {
        json one = json::array();
        std::vector<std::string> names; // that views stay valid
        for (const json& d : disks) {
            names.push_back(d.at("name").get<std::string>());
            if (names.back() == o.name)
                one.push_back(d);
        }
        if (one.empty())
            return error{"disk " + o.name + " does not exist" +
                         did_you_mean(o.name, {names.begin(), names.end()})};
        disks = std::move(one);
    }
    const auto before = [&](const json& a, const json& b) {
        if (o.sort == "size" && a.at("size") != b.at("size"))
            return a.at("size") > b.at("size");
        if (o.sort == "client" && a.at("connected") != b.at("connected"))
            return a.at("connected").get<bool>();
        return a.at("name") < b.at("name");
    };
    std::sort(disks.begin(), disks.end(), before);
    return {};
}

std::string disk_list_text(const json& disks, const disk_list_options& o) {
    return o.name.empty() ? disk_table(disks, o.wide, o.width) : disk_details(disks.at(0));
}

std::string disk_table(const json& disks, bool wide, size_t width) {
    std::vector<column> columns = {
        {"NAME", false, true},   {"SIZE", true},   {"ACCESS"},           {"STATE"},
        {"CLIENT", false, true}, {"QUEUES", true}, {"LANE", false, true}};
    if (wide)
        columns.insert(columns.end(), {{"QUEUE SIZE", true}, {"CHUNK", true}, {"POLLERS"}});
    columns.push_back({"TARGETS", false, true});
    if (wide)
        columns.insert(columns.end(), {{"POLICY"}, {"SOCKET OR DEVICE"}});
    table out(columns);
    std::string problems;

    for (const json& d : disks) {
        std::vector<std::string> row = {d.at("name").get<std::string>(),
                                        human_size(d.at("size").get<uint64_t>()),
                                        d.at("read_only").get<bool>() ? "ro" : "rw",
                                        state(d),
                                        client_of(d),
                                        number(d, "queues_running") + "/" + number(d, "queues"),
                                        lanes(d.at("lanes"), wide)};
        if (wide)
            row.insert(row.end(),
                       {number(d, "queue_size"), human_size(d.at("chunk_size").get<uint64_t>()),
                        joined(d.at("pollers"))});
        row.push_back(joined(d.at("targets")));
        if (wide)
            row.insert(row.end(), {or_dash(d.at("policy").get<std::string>()), address(d)});
        out.add(std::move(row));
        if (const std::string p = problem(d); !p.empty())
            problems += "disk " + d.at("name").get<std::string>() + ": " + p + "\n";
    }
    return out.text(wide ? 0 : width) + problems;
}

std::string disk_details(const json& d) {
    std::string text;
    const auto line = [&](const std::string& what, const std::string& value) {
        if (!value.empty())
            text += what + std::string(what.size() < 14 ? 14 - what.size() : 1, ' ') + value + "\n";
    };
    line("name", d.at("name").get<std::string>());
    line("state", state(d));
    line("problem", problem(d));
    line("size", human_size(d.at("size").get<uint64_t>()) + " (" + number(d, "size") + " bytes)");
    line("access", d.at("read_only").get<bool>() ? "read-only" : "read-write");
    line("serial", d.value("serial", ""));
    line("front end", d.value("frontend", ""));
    line(d.contains("socket") ? "socket" : "device", address(d));
    line("client", client_of(d));
    line("queues", number(d, "queues") + " of up to " + number(d, "queue_size") + " entries, " +
                       number(d, "queues_running") + " running");
    line("lane", lanes(d.at("lanes"), true));
    line("pollers", joined(d.at("pollers")));
    line("chunk", human_size(d.at("chunk_size").get<uint64_t>()));
    line("targets", joined(d.at("targets")));
    line("policy", d.at("policy").get<std::string>());
    return text;
}

} // namespace vql
