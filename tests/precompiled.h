// SPDX-License-Identifier: GPL-2.0-only
// What most tests include and what takes longest to read, for the compiler to read once: sanitizer
// builds put it before each of them (Makefile). The plain build does not, so a file that forgets an
// include of its own fails there.
#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>
