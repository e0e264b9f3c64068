// SPDX-License-Identifier: GPL-2.0-only
#include "cli/table.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace vql {

void table::add(std::vector<std::string> row) {
    for (std::string& cell : row)
        for (char& c : cell)
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
                c = '?';
    rows_.push_back(std::move(row));
}

std::string shortened(const std::string& text, size_t width) {
    if (text.size() <= width)
        return text;
    const size_t kept = width - 2, head = kept / 2;
    return text.substr(0, head) + ".." + text.substr(text.size() - (kept - head));
}

std::string table::text(size_t width) const {
    constexpr size_t narrowest = 8;
    std::vector<std::string> headings;
    std::vector<size_t> widths;
    for (const column& c : columns_) {
        headings.emplace_back(c.heading);
        widths.push_back(headings.back().size());
    }
    for (const auto& row : rows_)
        for (size_t i = 0; i < row.size(); i++)
            widths[i] = std::max(widths[i], row[i].size());

    const auto total = [&] {
        size_t sum = 0;
        for (const size_t w : widths)
            sum += w + 2;
        return sum - 2;
    };
    while (width && total() > width) {
        size_t* widest = nullptr;
        for (size_t i = 0; i < widths.size(); i++)
            if (columns_[i].gives && widths[i] > narrowest && (!widest || widths[i] > *widest))
                widest = &widths[i];
        if (!widest)
            break;
        --*widest;
    }

    std::string text;
    const auto append = [&](const std::vector<std::string>& row) {
        std::string line;
        for (size_t i = 0; i < row.size(); i++) {
            const std::string cell = shortened(row[i], widths[i]);
            const std::string padding(widths[i] - cell.size(), ' ');
            line += i ? "  " : "";
            line += columns_[i].numeric ? padding + cell : cell + padding;
        }
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + "\n";
    };
    append(headings);
    for (const auto& row : rows_)
        append(row);
    return text;
}

std::string fixed(double value, int decimals) {
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
    return text.data();
}

std::string human_size(uint64_t bytes) {
    static constexpr std::array<const char*, 7> units = {"", "K", "M", "G", "T", "P", "E"};
    size_t unit = 0;
    auto value = static_cast<double>(bytes);

    // 1023.96 would be rounded to 1024.0.
    for (; value >= 1023.95 && unit + 1 < units.size(); unit++)
        value /= 1024;
    std::string text = fixed(value, 1);
    if (text.ends_with(".0"))
        text.resize(text.size() - 2);
    return text + units[unit];
}

std::string human_duration(uint64_t ns) {
    static constexpr std::array<const char*, 4> units = {"ns", "us", "ms", "s"};
    size_t unit = 0;
    auto value = static_cast<double>(ns);

    if (ns < 1000)
        return std::to_string(ns) + "ns";
    for (; value >= 999.5 && unit + 1 < units.size(); unit++)
        value /= 1000;
    return fixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0) + units[unit];
}

} // namespace vql
