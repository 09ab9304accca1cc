import Link from "next/link";
import Greeting from "./greeting";

export default function Page() {
  return <main><Greeting /><Link id="second" href="/second">second</Link></main>;
}
