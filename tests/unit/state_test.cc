// SPDX-License-Identifier: GPL-2.0-only
// What commands did, in files: read, written, damaged, and killed in the middle.
#include "config_text.h"

#include "daemon/state.h"

#include <csignal>
#include <sys/wait.h>

namespace {

using nlohmann::json;
using namespace vql::test;

std::string note_file(const temp_file& at, const std::string& disk) {
    return at.folder() + "/state/disk-" + disk + ".toml";
}

vql::disk_notes notes_of(const temp_file& at, std::vector<std::string>* wrong = nullptr) {
    std::vector<std::string> said;
    auto notes = vql::read_notes(at.folder() + "/state", said);
    if (wrong)
        *wrong = said;
    else
        CHECK(said == std::vector<std::string>{});
    return notes;
}

const json added = {{"name", "d"},       {"file", "/x/\"quoted\" \\ and ü.img"},
                    {"size", 1 << 30},   {"queues", 3},
                    {"read_only", true}, {"socket_mode", "0660"}};

// A store over a folder, until all that was asked of it is done.
struct store {
    explicit store(const temp_file& at) : state(loop, at.folder() + "/state") { state.open(wrong); }

    vql::result<void> put(const std::string& name, std::optional<vql::disk_note> note) {
        std::optional<vql::result<void>> outcome;
        state.put(name, std::move(note), [&](vql::result<void> ok) { outcome = std::move(ok); });
        while (!outcome)
            loop.run_once(100);
        return *outcome;
    }

    std::vector<std::string> wrong;
    vql::event_loop loop;
    vql::state_store state;
};

vql::disk_note resized_to(uint64_t bytes, const std::string& on = "") {
    vql::disk_note note;
    note.resized = bytes;
    note.on = on;
    return note;
}

} // namespace

TEST_CASE("a note is read as it was written", "[state]") {
    const temp_file at("");
    vql::disk_note note;
    note.added = added;
    note.resized = 3ull << 30;
    note.on = "file:/x";
    at.add("state/disk-d.toml", note.toml("d"));
    at.add("state/disk-e.toml", resized_to(4ull << 40).toml("e"));
    vql::disk_note gone;
    gone.removed = true;
    at.add("state/disk-.f.toml", gone.toml(".f"));
    const auto notes = notes_of(at);
    REQUIRE(notes.size() == 3);
    CHECK(notes.at("d").added == added);
    CHECK(notes.at("d").resized == 3ull << 30);
    CHECK(notes.at("d").on == "file:/x");
    CHECK(notes.at("e").added.is_null());
    CHECK(notes.at("e").resized == 4ull << 40);
    CHECK(notes.at(".f").removed);

    vql::disk_note parts;
    parts.added = {{"name", "p"},
                   {"extents", {{{"target", "t"}, {"offset", 65536}}, {{"target", "u"}}}}};
    at.add("state/disk-p.toml", parts.toml("p"));
    CHECK(notes_of(at).at("p").added == parts.added);
}

TEST_CASE("a damaged note is named, and loses no other", "[state]") {
    const temp_file at("");
    vql::disk_note note;
    note.added = added;
    at.add("state/disk-d.toml", note.toml("d"));
    at.add("state/disk-cut.toml", note.toml("cut").substr(0, 70));
    at.add("state/disk-empty.toml", "");
    at.add("state/disk-other.toml", note.toml("d"));
    at.add("state/disk-wrong.toml", "[[disk]]\nname = \"wrong\"\nqueues = 0\nfile = \"/x\"\n");
    at.add("state/disk-two.toml", resized_to(512).toml("two") + "[[removed]]\nname = \"two\"\n");
    at.add("state/disk-key.toml", "colour = \"red\"\n");
    at.add("state/new.tmp", "what a crash left");
    std::vector<std::string> wrong;
    const auto notes = notes_of(at, &wrong);
    CHECK(notes.size() == 1);
    CHECK(notes.contains("d"));
    REQUIRE(wrong.size() == 6);
    for (const char* name : {"cut", "empty", "key", "other", "two", "wrong"}) {
        INFO(name);
        CHECK(std::any_of(wrong.begin(), wrong.end(), [&](const std::string& line) {
            return line.starts_with(note_file(at, name));
        }));
    }
}

TEST_CASE("no folder is no note, and one that is none is named", "[state]") {
    const temp_file at("");
    CHECK(notes_of(at).empty());
    at.add("state", "");
    std::vector<std::string> wrong;
    CHECK(notes_of(at, &wrong).empty());
    CHECK(wrong.size() == 1);
}

TEST_CASE("what commands did is applied to what the files say", "[state]") {
    auto c = load("[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1G\"\n"
                  "[[target]]\nname = \"u\"\ntype = \"null\"\nsize = \"4G\"\n"
                  "[[disk]]\nname = \"whole\"\ntarget = \"t\"\n"
                  "[[disk]]\nname = \"sized\"\nfile = \"/x\"\nsize = \"1G\"\n"
                  "[[disk]]\nname = \"large\"\nfile = \"/z\"\nsize = \"8G\"\n"
                  "[[disk]]\nname = \"other\"\nfile = \"/w\"\nsize = \"1G\"\n"
                  "[[disk]]\nname = \"same\"\nfile = \"/v\"\nsize = \"1G\"\n"
                  "[[disk]]\nname = \"gone\"\nfile = \"/y\"\n"
                  "[[disk]]\nname = \"moved\"\ntarget = \"u\"\nqueues = 2\n");
    REQUIRE(c);
    vql::disk_note gone, made, moved;
    gone.removed = true;
    made.added = added;
    made.resized = 5ull << 30;
    moved.added = {{"name", "moved"}, {"file", "/old"}};
    const vql::disk_notes notes = {{"whole", resized_to(2ull << 30)},
                                   {"sized", resized_to(2ull << 30)},
                                   {"large", resized_to(2ull << 30)},
                                   {"other", resized_to(2ull << 30, "file:/elsewhere")},
                                   {"same", resized_to(2ull << 30, "file:/v")},
                                   {"gone", gone},
                                   {"d", made},
                                   {"nobody", resized_to(512)},
                                   {"moved", moved}};
    std::vector<std::string> said;
    vql::apply_notes(notes, *c, said);
    const auto disk = [&](const std::string& name) -> const vql::disk_config* {
        for (const auto& d : c->disks)
            if (d.name == name)
                return &d;
        return nullptr;
    };
    const auto target = [&](const std::string& name) {
        for (const auto& t : c->targets)
            if (t.name == name)
                return t;
        return vql::target_config();
    };
    CHECK(disk("whole")->bytes == 0);
    CHECK(target("t").at_least == 2ull << 30);
    CHECK(disk("sized")->bytes == 2ull << 30);
    CHECK(target("file:/x").at_least == 2ull << 30);
    CHECK(disk("large")->bytes == 8ull << 30);
    CHECK(target("file:/z").at_least == 0);
    CHECK(!disk("gone"));
    CHECK(!disk("nobody"));
    REQUIRE(disk("d"));
    CHECK(disk("d")->queues == 3);
    CHECK(disk("d")->bytes == 5ull << 30);
    CHECK(target("file:/x/\"quoted\" \\ and ü.img").at_least == 5ull << 30);
    CHECK(disk("moved")->queues == 2);
    CHECK(disk("other")->bytes == 1ull << 30); // a size goes with the bytes that have it
    CHECK(target("file:/w").at_least == 0);
    CHECK(disk("same")->bytes == 2ull << 30);
    CHECK(said.size() == 6); // gone, sized, large, moved, other, same
}

TEST_CASE("a store writes what was put, and forgets what was taken back", "[state]") {
    const temp_file at("");
    store s(at);
    CHECK(s.wrong.empty());
    CHECK_FALSE(std::filesystem::exists(at.folder() + "/state")); // nothing to keep so far
    CHECK(s.put("d", std::nullopt));
    REQUIRE(s.put("d", resized_to(512)));
    CHECK(notes_of(at).at("d").resized == 512);
    REQUIRE(s.put("d", resized_to(1024)));
    CHECK(notes_of(at).at("d").resized == 1024);
    CHECK(s.state.find("d")->resized == 1024);
    REQUIRE(s.put("d", std::nullopt));
    CHECK(notes_of(at).empty());
    CHECK(s.state.find("d") == nullptr);

    // An undo is of the last change only.
    std::optional<vql::result<void>> done;
    const auto first = s.state.put("e", resized_to(512), [](vql::result<void>) {});
    const auto second =
        s.state.put("e", resized_to(1024), [&](vql::result<void> ok) { done = std::move(ok); });
    while (!done)
        s.loop.run_once(100);
    bool ended = false;
    s.state.undo(first, [&] { ended = true; });
    CHECK(ended);
    CHECK(s.state.find("e")->resized == 1024);
    bool undone = false;
    s.state.undo(second, [&] { undone = true; });
    CHECK(s.state.find("e")->resized == 512);
    while (!undone)
        s.loop.run_once(100);
    CHECK(notes_of(at).at("e").resized == 512);
}

TEST_CASE("what cannot be written is not noted", "[state]") {
    const temp_file at("");
    store s(at);
    REQUIRE(s.put("d", resized_to(512)));
    // A folder where the unfinished note is to be.
    std::filesystem::create_directories(at.folder() + "/state/new.tmp/x");
    const auto ok = s.put("d", resized_to(1024));
    REQUIRE_FALSE(ok);
    CHECK(ok.failure().text.find(note_file(at, "d")) != std::string::npos);
    CHECK(s.state.find("d")->resized == 512);
    CHECK(notes_of(at).at("d").resized == 512);
}

TEST_CASE("a folder is one daemon's", "[state]") {
    const temp_file at("");
    store first(at);
    REQUIRE(first.put("d", resized_to(512)));
    store second(at);
    REQUIRE(second.wrong.size() == 1);
    CHECK(second.wrong[0].find("in use by another vqlaned") != std::string::npos);
    CHECK_FALSE(second.put("d", resized_to(1024)));
    CHECK(notes_of(at).at("d").resized == 512);
}

TEST_CASE("a store that is killed leaves the note of before or the new one", "[state]") {
    const temp_file at("");
    uint64_t least = 0; // was said to be durable
    for (int round = 0; round < 25; round++) {
        int said[2];
        REQUIRE(::pipe(said) == 0);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            ::close(said[0]);
            store s(at);
            for (uint64_t n = least + 1;; n++) {
                if (!s.put("d", resized_to(n * 512)))
                    ::_exit(1);
                [[maybe_unused]] const ssize_t told = ::write(said[1], &n, sizeof(n));
            }
        }
        ::close(said[1]);
        uint64_t n = 0;
        for (int i = 0; i <= round; i++)
            REQUIRE(::read(said[0], &n, sizeof(n)) == sizeof(n));
        ::usleep(useconds_t(round * 37));
        ::kill(child, SIGKILL);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status));
        while (::read(said[0], &n, sizeof(n)) == sizeof(n))
            least = n;
        least = std::max(least, n);
        ::close(said[0]);
        const auto notes = notes_of(at);
        REQUIRE(notes.contains("d"));
        const uint64_t found = notes.at("d").resized / 512;
        CHECK((found == least || found == least + 1));
        least = found;
    }
}
