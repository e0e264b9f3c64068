// SPDX-License-Identifier: GPL-2.0-only
// The fuzzers' corpora, replayed without a fuzzer: what once was worth finding stays found.
#include "fuzz/fuzz.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

// Every prefix of an input is an input, too: cut where a length or a field ends, and in between.
void replay(const std::string& name, int (*target)(const uint8_t*, size_t), size_t cuts) {
    const std::filesystem::path folder =
        std::filesystem::path(VQL_SOURCE_DIR) / "tests/fuzz/corpus" / name;
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    CAPTURE(folder);
    REQUIRE(files.size() >= 5);
    for (const auto& file : files) {
        std::ifstream in(file, std::ios::binary);
        const std::vector<char> text{std::istreambuf_iterator<char>(in), {}};
        const std::vector<uint8_t> bytes(text.begin(), text.end());
        // A target that finds something wrong aborts: Catch2 then shows this line.
        UNSCOPED_INFO(file.string());
        for (size_t i = 0; i <= cuts; i++)
            CHECK(target(bytes.data(), bytes.size() * i / cuts) == 0);
    }
}

} // namespace

TEST_CASE("corpus: hostile rings", "[fuzz]") {
    replay("ring", fuzz_ring, 40);
}

TEST_CASE("corpus: hostile vhost-user clients", "[fuzz]") {
    replay("vhost_user", fuzz_vhost_user, 10);
}
