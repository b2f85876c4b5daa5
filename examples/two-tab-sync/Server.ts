/** The program's HTTP side: the page, the WebSockets, and its health. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Config from "effect/Config"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Crypto from "node:crypto"
import * as Http from "node:http"
import * as Net from "node:net"
import { Database } from "../../src/Database.js"
import { ConversationId } from "../../src/model/Conversation.js"
import { Documents } from "./Documents.js"
import { Page } from "./Page.js"
import * as Session from "./Session.js"

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/** The program could not listen. */
export class NotListening extends Data.TaggedError("NotListening")<{
  readonly host: string
  readonly port: number
  readonly cause: unknown
}> {
  override get message() {
    return `Cannot listen at ${this.host}:${this.port}. Is something else there? PORT=0 takes any port that is free.`
  }
}

/** Where the program listens: `HOST` and `PORT`, of which 0 is any that is free. */
export const listening = Config.all({
  host: Config.nonEmptyString("HOST").pipe(Config.withDefault("127.0.0.1")),
  port: Config.integer("PORT").pipe(
    Config.validate({
      message: "PORT must be a number from 0 to 65535",
      validation: (port) => port >= 0 && port <= 65_535
    }),
    Config.withDefault(3000)
  )
})

/**
 * The names, besides addresses, under which browsers may reach the program: `HOST`, and those in
 * `PUBLIC_NAMES`.
 */
const names = Config.all([
  Config.nonEmptyString("HOST").pipe(Config.withDefault("localhost")),
  Config.string("PUBLIC_NAMES").pipe(Config.withDefault(""))
]).pipe(
  Config.map(
    ([host, others]) =>
      new Set(
        ["localhost", host, ...others.split(",")].map((name) => name.trim().toLowerCase()).filter(Boolean)
      )
  )
)

/** A server that closes when it is told to, whatever the browsers think of it. */
export const layerNode = Layer.unwrapEffect(
  Effect.map(listening, (at) => {
    const server = Http.createServer()
    return Layer.scopedDiscard(Effect.addFinalizer(() => close(server))).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => server, at)),
      Layer.mapError(({ cause }) => new NotListening({ ...at, cause }))
    )
  })
)

/** Serves the program. */
export const layer = Layer.unwrapEffect(
  Effect.gen(function* () {
    const page = yield* Page
    const database = yield* Database
    const documents = yield* Documents
    const ours = sameOrigin(yield* names)
    yield* documents.create(first)

    return HttpRouter.empty.pipe(
      HttpRouter.get("/", goTo(first)),
      HttpRouter.post(
        "/conversations",
        ours(
          Effect.gen(function* () {
            const conversation = ConversationId.make(Crypto.randomUUID())
            yield* documents.create(conversation)
            return yield* goTo(conversation)
          })
        )
      ),
      HttpRouter.get(
        "/c/:conversation",
        Effect.map(HttpRouter.schemaPathParams(Path), () => served(page.html, "text/html"))
      ),
      HttpRouter.get(
        "/style.css",
        Effect.sync(() => served(page.style, "text/css"))
      ),
      HttpRouter.get(
        "/client.js",
        Effect.sync(() => served(page.script, "text/javascript"))
      ),
      HttpRouter.get(
        "/sync/:conversation",
        ours(
          Effect.flatMap(HttpRouter.schemaPathParams(Path), ({ conversation }) => Session.run(conversation))
        )
      ),
      HttpRouter.get(
        "/healthz",
        Effect.map(database.health, ({ status, ...details }) =>
          HttpServerResponse.unsafeJson(
            { database: status, ...details },
            {
              status: status === "down" ? 503 : 200,
              headers: { "cache-control": "no-store" }
            }
          )
        )
      ),
      HttpRouter.catchTag("ParseError", () => HttpServerResponse.text("Not found", { status: 404 })),
      HttpRouter.catchTag("SqlError", (error) =>
        Effect.zipRight(
          Effect.logWarning("The database refused", error),
          HttpServerResponse.text("The database does not answer.", { status: 503 })
        )
      ),
      HttpServer.serve()
    )
  })
)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The text that somebody gets who asks for none. */
const first = ConversationId.make("00000000-0000-4000-8000-000000000002")

/** An id is the same in upper case. */
const Path = Schema.Struct({ conversation: Schema.compose(Schema.Lowercase, ConversationId) })

const goTo = (conversation: ConversationId) =>
  HttpServerResponse.redirect(`/c/${conversation}`, { status: 303 })

const served = (text: string, type: string) =>
  HttpServerResponse.text(text, {
    contentType: `${type}; charset=utf-8`,
    headers: {
      "cache-control": "no-cache",
      "content-security-policy":
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
      "referrer-policy": "same-origin",
      "x-content-type-options": "nosniff"
    }
  })

/**
 * Browsers let every page open WebSockets to, and post forms to, every address: only our own page
 * may. A page of another name could have that name lead to this machine once it is loaded, and pass
 * for ours: so names have to be known. An address cannot be led elsewhere.
 */
const sameOrigin =
  (names: ReadonlySet<string>) =>
  <E, R>(app: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>) =>
    Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) => {
      const { host, origin } = headers
      const page = Option.getOrUndefined(Option.liftThrowable(() => new URL(origin ?? ""))())
      const allowed =
        origin === undefined ||
        (page !== undefined && page.host === host && (isAddress(page.hostname) || names.has(page.hostname)))
      return allowed ? app : HttpServerResponse.text("Another page may not do that.", { status: 403 })
    })

const isAddress = (hostname: string) => Net.isIP(hostname.replace(/^\[|\]$/g, "")) !== 0

/**
 * Takes nobody new and cuts off who does not talk: a browser keeps connections open that it may
 * need some day.
 */
const close = (server: Http.Server) =>
  Effect.async<void>((resume) => {
    server.close(() => resume(Effect.void))
    server.closeAllConnections()
  })
