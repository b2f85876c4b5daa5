/**
 * Two tabs in sync: `npm start`, and the address that it prints in two windows.
 *
 * The texts are in the database of `DATABASE_URL`, else on an embedded server in `.data/`. Any
 * number of these programs may run on one database. `HOST` (127.0.0.1) and `PORT` (3000) say where
 * it listens.
 */
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as HttpServer from "@effect/platform/HttpServer"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { loader } from "../../migrations/index.js"
import * as Database from "../../src/Database.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Migrator from "../../src/Migrator.js"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"
import * as Announcements from "./Announcements.js"
import * as Documents from "./Documents.js"
import * as Page from "./Page.js"
import * as Rooms from "./Rooms.js"
import * as Server from "./Server.js"

/** The database of the environment, else an embedded one. */
const database = Layer.scopedContext(
  Effect.gen(function* () {
    const given = yield* Effect.option(Config.nonEmptyString("DATABASE_URL"))
    if (Option.isSome(given)) return yield* Layer.build(Database.layerEnv)
    const { url } = yield* EmbeddedPostgres.make({ dataDirectory: ".data" })
    const settings = new Map([["DATABASE_URL", Redacted.value(url)]])
    return yield* Layer.build(Database.layerEnv).pipe(
      Effect.withConfigProvider(
        ConfigProvider.orElse(ConfigProvider.fromMap(settings), () => ConfigProvider.fromEnv())
      )
    )
  })
)
const migrated = Layer.provideMerge(Migrator.layer({ loader }), database)

const repositories = Layer.mergeAll(User.layer, Class.layer, Conversation.layer)
const texts = Layer.merge(Rooms.layer, Documents.layer).pipe(
  Layer.provide(Layer.merge(Announcements.layer, repositories))
)

const address = Layer.effectDiscard(
  HttpServer.addressFormattedWith((address) => Console.log(`Two tabs in sync: ${address}/`))
)

// What is provided last is built first and ends last: the server takes nobody before the texts are
// there.
const program = address.pipe(
  Layer.provide(Server.layer),
  Layer.provide(Server.layerNode),
  Layer.provide(Layer.merge(texts, Page.layer)),
  Layer.provide(Layer.merge(migrated, NodeContext.layer))
)

NodeRuntime.runMain(Layer.launch(program))
